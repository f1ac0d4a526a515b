"""Properties of all configs: the runtime, headers, sizes, colours, test views."""

import copy
import functools
import inspect
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ('configs/*.py', 'configs/[a-z]*/*.py', 'benchmarks/configs/*.py')
    for path in ROOT.glob(pattern)
)
# Further top-level keys that mmengine reads.
ALSO_READ = {'custom_imports', 'auto_scale_lr', 'model_wrapper_cfg', 'sync_bn'}


@functools.cache
def read_once(path):
    return Config.fromfile(ROOT / path)


def read(path):
    return copy.deepcopy(read_once(path))


def walk(node, path=''):
    """Yield path and value of all leaves of a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from walk(value, f'{path}.{key}' if path else key)
    elif isinstance(node, list) and any(isinstance(each, dict) for each in node):
        for index, value in enumerate(node):
            yield from walk(value, f'{path}.{index}')
    else:
        yield path, node


@pytest.mark.parametrize('path', CONFIGS)
def test_every_config_has_the_shared_runtime(path):
    cfg = read(path)
    # What needs mmdet or mmseg is imported for detection and segmentation alone.
    more = []
    if '/coco/' in path:
        more = ['mmpatchmix.datasets.coco_files', 'mmpatchmix.models.detection.full_precision']
    elif 'ade20k/linear' in path:
        more = ['mmpatchmix.models.detection.linear_seg_head']
    assert cfg.custom_imports.imports == ['mmpatchmix.registry', *more]
    scopes = {'coco': 'mmdet', 'ade20k': 'mmseg'}
    assert cfg.default_scope == scopes.get(path.split('/')[1], 'mmpretrain')
    shared = Config.fromfile(ROOT / 'configs/_base_/runtime.py')
    assert {name: hook.type for name, hook in shared.default_hooks.items()}.items() <= {
        name: hook.type for name, hook in cfg.default_hooks.items()
    }.items()
    fsdp = dict(type='mmpatchmix.PatchMixFSDP')
    assert cfg.model_wrapper_cfg == (fsdp if '_fsdp' in path else shared.model_wrapper_cfg)
    assert ('momentum' in cfg.default_hooks) == (cfg.model.type == 'mmpatchmix.PatchMix')
    assert set(cfg) <= set(inspect.signature(Runner.__init__).parameters) | ALSO_READ


# Benchmarks that train with a config of their own.
SCRIPTS = ('health',)


@pytest.mark.parametrize('path', CONFIGS)
def test_header_has_the_command(path):
    header = (ROOT / path).read_text().split('\n_base_')[0]
    scripts = [f'python benchmarks/{name}.py' for name in SCRIPTS]
    assert any(
        command in header for command in (path, 'make demo-coco', 'make demo-ade20k', *scripts)
    )


# Config, its size, another one, and the test views' shorter edge, size * 256 / 224.
SIZES = [
    ('configs/patchmix_vit-s_in1k.py', 224, 160, {256: 182}),
    ('configs/patchmix_vit-s_folder.py', 224, 160, {256: 182}),
    ('configs/patchmix_vit-s_any.py', 224, 160, {}),
    ('configs/patchmix_vit-s_plain.py', 224, 160, {}),
    ('configs/finetune/vit-b_in1k.py', 224, 160, {256: 182}),
    ('configs/patchmix_vit-t_cifar100.py', 32, 48, {36: 54}),
    ('configs/linear/vit-b_cifar10.py', 32, 48, {36: 54}),
    ('configs/patchmix_vit-digits.py', 32, 48, {}),
]


@pytest.mark.parametrize(('path', 'size', 'other', 'edges'), SIZES)
def test_one_key_changes_all_sizes(path, size, other, edges, monkeypatch):
    monkeypatch.delenv('PATCHMIX_IMG_SIZE', raising=False)
    shipped = dict(walk(Config.fromfile(ROOT / path).to_dict()))
    monkeypatch.setenv('PATCHMIX_IMG_SIZE', str(other))
    changed = dict(walk(Config.fromfile(ROOT / path).to_dict()))
    names = {'img_size', 'image_size', 'global_size', 'crop_size', 'scale', 'size'}
    # Not the scale of an affine transform, a pair of factors.
    sizes = {k for k, v in shipped.items() if k.rpartition('.')[2] in names and type(v) is int}
    assert {key for key in shipped if shipped[key] != changed[key]} == sizes
    assert 'model.backbone.img_size' in sizes
    for loader in ('train', 'val', 'test'):
        assert any(key.startswith(f'{loader}_dataloader') for key in sizes)
    assert any(key.startswith('val_cfg.bank') for key in sizes) == ('patchmix_' in path)
    for key in sizes:
        assert changed[key] == ({size: other} | edges)[shipped[key]], key


def test_digits_have_one_mean_and_standard_deviation():
    digits = load_digits()
    train, _ = train_test_split(
        np.arange(1797), test_size=0.2, stratify=digits.target, random_state=0
    )
    small = np.float32(digits.images[train] * 255 / 16)
    large = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC) for image in small]
    pixels = np.clip(np.rint(large), 0, 255)  # (1437, 32, 32)
    for path in (
        'configs/patchmix_vit-digits.py',
        'configs/finetune/vit-digits.py',
        'configs/coco/mask-rcnn_vit-digits_scenes.py',
    ):
        colours = read(path).model.data_preprocessor
        assert colours.mean == pytest.approx([pixels.mean()] * 3, abs=0.005)
        assert colours.std == pytest.approx([pixels.std()] * 3, abs=0.005)


@pytest.mark.parametrize('path', [path for path in CONFIGS if '/coco/' not in path])
def test_test_views_are_the_same_in_all_loaders(path):
    cfg = read(path)
    if cfg.val_dataloader is None:  # no labels
        assert cfg.test_dataloader is None is cfg.val_cfg is cfg.test_cfg
        return
    view = cfg.val_dataloader.dataset.pipeline
    assert cfg.test_dataloader.dataset.pipeline == view
    if cfg.model.type == 'mmpatchmix.PatchMix':
        train, bank = cfg.train_dataloader.dataset, cfg.val_cfg.bank_dataloader.dataset
        assert bank.pipeline == view and cfg.test_cfg == cfg.val_cfg
        which = {'type', 'data_root', 'data_prefix', 'split', 'indices', 'labels'}
        assert {k: v for k, v in bank.items() if k in which} == {
            k: v for k, v in train.items() if k in which
        }
        assert bank.test_mode and not cfg.val_cfg.bank_dataloader.sampler.shuffle
