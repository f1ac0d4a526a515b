"""Values of the wrong type are refused for our own types; upstream configs pass."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.registry import MODELS

CONFIG = Config.fromfile('configs/patchmix_vit-s_in1k.py')
WRONG = [
    ('model.head.temperature', '0.2'),
    ('model.head.temperature', float('nan')),
    ('model.head.predictor', 'mlp'),
    ('model.head.temperature', True),
    ('model.data_preprocessor.num_mix', [2, 2.5]),
    ('model.data_preprocessor.augment.view_1.color_jitter', (0.4, 0.4)),
    ('model.micro_batch_size', 1.5),
    ('model.backbone', None),
    ('train_dataloader.dataset.pipeline.0.reduced_decoding', 1),
    ('val_cfg.bank_dataloader', 'train'),
]


def change(cfg, key, value):
    """Set a value, a whole dict too; mmengine's merge_from_dict() would merge that."""
    cfg = copy.deepcopy(cfg)
    *parts, last = key.split('.')
    node = cfg
    for part in parts:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return cfg


@pytest.mark.parametrize(('key', 'value'), WRONG, ids=lambda value: str(value)[:60])
def test_values_of_the_wrong_type_are_named(key, value):
    cfg = change(CONFIG, key, value)
    with pytest.raises(ValueError, match=rf'{re.escape(key)}.*=.* must be \w+') as caught:
        check_config(cfg)
    assert str(caught.value).count('must be') == 1


UPSTREAM = [
    'mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',  # lists as neck.in_channels
    'mmdet/detr/detr_r50_8xb2-150e_coco.py',  # a key that is removed before its type is built
    'mmdet/bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test.py',
    'mmdet/mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py',
    'mmpretrain/swin_transformer/swin-tiny_16xb64_in1k.py',
    'mmpretrain/glip/glip-t_headless.py',  # without default_scope
    'mmpretrain/chinese_clip/cn-clip_vit-base-p16_zeroshot-cls_cifar100.py',
]


@pytest.mark.parametrize('name', UPSTREAM)
def test_upstream_configs_are_not_refused(name):
    package, name = name.split('/', 1)
    folder = Path(importlib.util.find_spec(package).origin).parent / '.mim/configs'
    check_config(Config.fromfile(folder / name))


def test_misspelt_keys_and_types_of_upstream_are_refused():
    folder = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim/configs'
    for option, near in {
        'model.neck.num_out': 'num_outs',
        'model.backbone.type': 'ResNet',
        'optim_wrapper.optimizer.weight_decai': 'weight_decay',
        'train_cfg.max_epoch': 'max_epochs',
    }.items():
        cfg = Config.fromfile(folder / UPSTREAM[0].partition('/')[2])
        cfg.merge_from_dict({option: 'ResNett' if option.endswith('type') else 5})
        with pytest.raises(ValueError, match=f'{option}: .*did you mean {near}'):
            check_config(cfg)


def test_a_class_that_is_registered_again_is_checked_anew(monkeypatch):
    class Scaled:
        def __init__(self, scale=1):
            pass

    class Sized:
        def __init__(self, size=1):
            pass

    for kind, key in ((Scaled, 'scale'), (Sized, 'size')):  # as a cell of a notebook does
        monkeypatch.setitem(MODELS._module_dict, 'Redefined', kind)
        check_config(Config(dict(model=dict(type='mmpatchmix.Redefined', **{key: 2}))))
        with pytest.raises(ValueError, match=f'did you mean {key}'):
            check_config(Config(dict(model=dict(type='mmpatchmix.Redefined', **{f'{key}s': 2}))))
