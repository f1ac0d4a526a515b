"""Augmentation moves between the device and the workers, and does the same in both."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmpatchmix.cli.build_runner import build_runner
from mmpatchmix.cli.check_config import check_config
from mmpatchmix.engine.augment_place import place_augmentation
from tests.engine.tiny_run import tiny_run_config

CONFIG = 'configs/patchmix_vit-s_in1k.py'


def types(cfg) -> list[str]:
    return [step['type'] for step in cfg.train_dataloader.dataset.pipeline]


def load(augment_on='auto', path=CONFIG):
    cfg = Config.fromfile(path)
    cfg.model.data_preprocessor.augment_on = augment_on
    return cfg


@pytest.fixture
def accelerator(monkeypatch):
    """A switch for what the machine seems to have."""
    found = [False]
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: found[0])
    return lambda there: found.__setitem__(0, there)


def test_to_the_workers_and_back(accelerator):
    cfg = load('workers')
    before = cfg.to_dict()
    line = place_augmentation(cfg)
    assert 'in the data workers' in line
    assert types(cfg) == [
        'mmpatchmix.LoadMultiCrop',
        'mmpatchmix.AugmentViews',
        'mmpatchmix.PackViews',
    ]
    assert cfg.model.data_preprocessor.augment == {}
    step = cfg.train_dataloader.dataset.pipeline[1].to_dict()
    assert (step.pop('type'), step.pop('channel_order')) == ('mmpatchmix.AugmentViews', 'bgr')
    expected = before['model']['data_preprocessor']['augment']
    for settings in copy.deepcopy(expected).values():
        assert settings.pop('type') == 'mmpatchmix.PhotometricAugment'
    assert step == {
        view: {key: value for key, value in settings.items() if key != 'type'}
        for view, settings in expected.items()
    }
    check_config(cfg)
    again = cfg.to_dict()
    place_augmentation(cfg)
    assert cfg.to_dict() == again  # once is enough
    cfg.model.data_preprocessor.augment_on = 'device'
    assert 'on the device' in place_augmentation(cfg)
    cfg.model.data_preprocessor.augment_on = 'workers'
    assert cfg.to_dict() == before


def test_auto_follows_the_accelerator(accelerator):
    cfg = load()
    assert place_augmentation(cfg) == (
        'Photometric augmentation happens in the data workers (there is no accelerator, and they '
        'take less time).'
    )
    assert 'mmpatchmix.AugmentViews' in types(cfg)
    accelerator(True)
    assert 'on the device, batched (it is an accelerator)' in place_augmentation(cfg)
    assert 'mmpatchmix.AugmentViews' not in types(cfg)


def test_rgb_data_stay_rgb(accelerator):
    cfg = load('workers', 'configs/patchmix_vit-s_cifar10.py')
    place_augmentation(cfg)
    assert cfg.train_dataloader.dataset.pipeline[1].channel_order == 'rgb'
    cfg.model.data_preprocessor.to_rgb = True
    with pytest.raises(ValueError, match=r"channel_order='rgb' and .*to_rgb=True contradict"):
        place_augmentation(cfg)


def test_pipelines_of_wrapped_data_sets_are_found(accelerator):
    cfg = load('workers')
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[dataset, copy.deepcopy(dataset)]
    )
    place_augmentation(cfg)
    for part in cfg.train_dataloader.dataset.datasets:
        assert [step.type for step in part.pipeline][1:] == [
            'mmpatchmix.AugmentViews',
            'mmpatchmix.PackViews',
        ]
    cfg.train_dataloader.dataset.datasets[0].pipeline[1].view_1.blur_prob = 0.3
    cfg.model.data_preprocessor.augment_on = 'device'
    with pytest.raises(ValueError, match='pipelines differ'):
        place_augmentation(cfg)


@pytest.mark.parametrize(
    'path', ['configs/patchmix_vit-digits.py', 'configs/linear/vit-s_in1k.py', 'coco']
)
def test_nothing_to_augment_is_nothing_to_do(accelerator, path):
    cfg = Config.fromfile(path if path != 'coco' else 'configs/coco/mask-rcnn_vit-s_fpn_1x.py')
    before = cfg.to_dict()
    assert place_augmentation(cfg) is None
    assert cfg.to_dict() == before


def test_what_cannot_be_moved_stays_or_is_refused(accelerator):
    cfg = load()
    cfg.model.data_preprocessor.augment.view_2 = dict(type='mmpretrain.MyAugment')
    before = cfg.to_dict()
    assert 'on the device, batched (there is no accelerator, but' in place_augmentation(cfg)
    assert cfg.to_dict() == before
    cfg.model.data_preprocessor.augment_on = 'workers'
    with pytest.raises(ValueError, match=r'view_2 has mmpretrain\.MyAugment'):
        place_augmentation(cfg)
    cfg = load('workers')
    cfg.train_dataloader.dataset.pipeline.pop()
    with pytest.raises(ValueError, match=r'no training pipeline has mmpatchmix\.PackViews'):
        place_augmentation(cfg)


def test_misspelt_or_double_augmentation_is_refused(accelerator):
    with pytest.raises(ValueError, match="augment_on='gpu' must be 'auto', 'device' or 'workers'"):
        place_augmentation(load('gpu'))
    cfg = load('workers')
    augment = copy.deepcopy(cfg.model.data_preprocessor.augment)
    place_augmentation(cfg)
    cfg.model.data_preprocessor.augment = augment
    with pytest.raises(ValueError, match='augments twice'):
        place_augmentation(cfg)


@pytest.mark.parametrize('place', ['device', 'workers'])
def test_one_iteration_with_either_place(tmp_path, place):
    images = tmp_path / 'images'
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f'{number}.jpg')
    crops = dict(global_size=32, local_size=16, num_local=2)
    pipeline = [dict(type='mmpatchmix.LoadMultiCrop', **crops), dict(type='mmpatchmix.PackViews')]
    cfg = tiny_run_config(tmp_path / 'run', epochs=1, num_images=4, batch_size=4)
    cfg.train_dataloader.dataset = dict(
        type='mmpatchmix.ImageFolder', data_root=str(images), pipeline=pipeline
    )
    cfg.model.data_preprocessor.update(
        augment={
            view: dict(type='mmpatchmix.PhotometricAugment')
            for view in ('view_1', 'view_2', 'local_views')
        },
        augment_on=place,
    )
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.pop('report')
    cfg.launcher = 'none'
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 1
    model = runner.model
    assert bool(model.data_preprocessor.augment) == (place == 'device')
    transforms = runner.train_dataloader.dataset.pipeline.transforms
    assert len(transforms) == (3 if place == 'workers' else 2)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    where = {'device': 'on the device', 'workers': 'in the data workers'}[place]
    assert f'Photometric augmentation happens {where}' in log.read_text()
