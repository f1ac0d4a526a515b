"""Values of the wrong kind or out of range are refused by key, before anything is built."""

import copy
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.engine import MomentumScheduleHook
from mmpatchmix.registry import MODELS
from tests.models.tiny import tiny_config

WRONG = {
    'configs/patchmix_vit-s_in1k.py': [
        # -- ours
        ('model.head.temperature', None),
        ('model.head.temperature', '0.2'),
        ('model.head.temperature', float('nan')),
        ('model.head.label_smoothing', None),
        ('model.head.predictor', None),
        ('model.head.predictor', 'mlp'),
        ('model.data_preprocessor.num_mix', 2.5),
        ('model.data_preprocessor.num_mix', None),
        ('model.data_preprocessor.num_mix', '2'),
        ('model.data_preprocessor.num_mix', [2, 2.5]),
        ('model.data_preprocessor.num_mix', True),
        ('model.data_preprocessor.patch_size', 16.0),
        ('model.data_preprocessor.mix_prob', None),
        ('model.data_preprocessor.mix_prob', 'always'),
        ('model.data_preprocessor.mean', 120),
        ('model.data_preprocessor.std', ['1', '1', '1']),
        ('model.data_preprocessor.augment', 'all'),
        ('model.data_preprocessor.to_rgb', 'yes'),
        ('model.data_preprocessor.augment.view_1.blur_prob', 'often'),
        ('model.data_preprocessor.augment.view_1.color_jitter', 0.4),
        ('model.data_preprocessor.augment.view_1.color_jitter', (0.4, 0.4)),
        ('model.data_preprocessor.augment.view_2.solarize_threshold', None),
        ('model.data_preprocessor.augment.view_2.blur_kernel', 2.5),
        ('model.micro_batch_size', 1.5),
        ('model.micro_batch_size', '64'),
        ('model.compile', 'yes'),
        ('model.loss_weights', [1, 1]),
        ('model.momentum_encoder', True),
        ('model.backbone', None),
        ('model.backbone.img_size', None),
        ('model.backbone.img_size', '224'),
        ('model.backbone.patch_size', 0),
        ('model.backbone.patch_size', 16.0),
        ('model.backbone.with_cp', 'yes'),
        ('model.backbone.arch', None),
        ('model.neck', 'mlp'),
        ('default_hooks.momentum.momentum', None),
        ('default_hooks.momentum.momentum', '0.99'),
        ('default_hooks.momentum.end_momentum', [1]),
        ('train_dataloader.dataset.pipeline.0.global_size', 224.0),
        ('train_dataloader.dataset.pipeline.0.local_size', '96x96'),
        ('train_dataloader.dataset.pipeline.0.global_scale', 0.5),
        ('train_dataloader.dataset.pipeline.0.num_local', None),
        ('train_dataloader.dataset.pipeline.0.num_local', 'eight'),
        ('train_dataloader.dataset.pipeline.0.reduced_decoding', 1),
        ('train_dataloader.dataset.max_unreadable', 'few'),
        ('train_dataloader.dataset.holdout', None),
        ('val_cfg.pixel_baseline', 'yes'),
        ('val_cfg.bank_dataloader', 'train'),
        ('val_evaluator.num_neighbors', 10),
        ('val_evaluator.num_neighbors', (10, 2.5)),
        ('val_evaluator.temperature', 'cold'),
        # -- upstream's, which takes them until something breaks, or for good
        ('model', None),
        ('model.backbone.drop_path_rate', 2),
        ('model.backbone.drop_path_rate', -0.1),
        ('model.backbone.drop_path_rate', None),
        ('model.backbone.in_channels', 0),
        ('model.backbone.arch.num_layers', 0),
        ('model.backbone.arch.embed_dims', 384.0),
        ('model.neck.out_channels', 0),
        ('model.neck.hid_channels', '4096'),
        ('model.head.predictor.num_layers', 1.5),
        ('train_dataloader.batch_size', 0),
        ('train_dataloader.batch_size', 2.5),
        ('train_dataloader.num_workers', 'two'),
        ('train_dataloader.num_workers', -1),
        ('train_dataloader.num_workers', 1.5),
        ('train_dataloader.num_workers', None),
        ('train_dataloader.drop_last', 'no'),
        ('train_dataloader.pin_memory', 1),
        ('train_dataloader.sampler.shuffle', 'yes'),
        ('train_dataloader.sampler.seed', -1),
        ('train_dataloader.dataset', None),
        ('optim_wrapper.optimizer', None),
        ('optim_wrapper.optimizer.lr', 'fast'),
        ('optim_wrapper.optimizer.lr', 0),
        ('optim_wrapper.optimizer.lr', float('inf')),
        ('optim_wrapper.optimizer.lr', None),
        ('optim_wrapper.optimizer.weight_decay', -0.1),
        ('optim_wrapper.optimizer.betas', (0.9, 1.5)),
        ('optim_wrapper.optimizer.betas', 0.9),
        ('optim_wrapper.accumulative_counts', 0),
        ('optim_wrapper.clip_grad', 1.0),
        ('optim_wrapper.clip_grad', dict(max_norm=-1)),
        ('train_cfg.max_epochs', 0),
        ('train_cfg.max_epochs', 2.5),
        ('train_cfg.max_epochs', '300'),
        ('train_cfg.val_interval', 0),
        ('param_scheduler.0.begin', -1),
        ('param_scheduler.1.end', 0),
        ('param_scheduler.1.eta_min', 'low'),
        ('param_scheduler.1.by_epoch', 'yes'),
        ('default_hooks', None),
        ('default_hooks', []),
        ('default_hooks.checkpoint.interval', 0),
        ('default_hooks.checkpoint.max_keep_ckpts', 1.5),
        ('default_hooks.logger.interval', 0),
        ('env_cfg', None),
        ('env_cfg.dist_cfg.timeout', 'long'),
        ('env_cfg.dist_cfg.timeout', 0),
        ('randomness', None),
        ('randomness.seed', 'random'),
        ('randomness.seed', 1.5),
        ('randomness.diff_rank_seed', 'yes'),
        ('auto_scale_lr.base_batch_size', 0),
        ('auto_scale_lr.enable', 1),
        ('log_processor.window_size', 0),
        ('log_level', 'LOUD'),
        ('resume', 'yes'),
        ('load_from', 3),
        ('sync_bn', 'yes'),
    ]
}
CASES = [(path, key, value) for path, cases in WRONG.items() for key, value in cases]


@pytest.fixture(scope='module')
def configs():
    return {path: Config.fromfile(path) for path in WRONG}


def change(cfg, key, value):
    """Set a value, a whole dict too; mmengine's merge_from_dict() would merge that."""
    cfg = copy.deepcopy(cfg)
    *parts, last = key.split('.')
    node = cfg
    for part in parts:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return cfg


@pytest.mark.parametrize(('path', 'key', 'value'), CASES, ids=lambda value: str(value)[:60])
def test_wrong_values_are_named_with_what_they_must_be(configs, path, key, value):
    with pytest.raises(ValueError, match=rf'{re.escape(key)}.*=.* must be \w+'):
        check_config(change(configs[path], key, value))


def test_all_wrong_values_are_named_together(configs):
    cfg = change(configs[CASES[0][0]], 'model.head.temperature', None)
    cfg.train_dataloader.num_workers = 'two'
    with pytest.raises(ValueError, match=r'temperature=None(.|\n)*num_workers=.two'):
        check_config(cfg)


@pytest.mark.parametrize('path', sorted(Path('configs/coco').glob('*.py')), ids=lambda p: p.stem)
def test_shipped_detectors_have_no_wrong_value(path):
    check_config(Config.fromfile(path))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-3, 3),
    st.sampled_from([float('nan'), float('inf'), '', 'text', [], [1], (0.9, 0.99), {}]),
)
DIGITS = Config.fromfile('configs/patchmix_vit-digits.py')


def whole(value, low):
    return type(value) is int and value >= low


def number(value):
    return type(value) in (int, float) and -9 < value < 9  # no NaN, no infinity


GOOD = {
    'train_dataloader.batch_size': lambda v: v is None or whole(v, 1),
    'train_dataloader.num_workers': lambda v: whole(v, 0),
    'train_dataloader.drop_last': lambda v: v is True or v is False,
    'optim_wrapper.optimizer.lr': lambda v: number(v) and v > 0,
    'optim_wrapper.optimizer.betas': lambda v: v == (0.9, 0.99),
    'train_cfg.max_epochs': lambda v: whole(v, 1),
    'model.backbone.drop_path_rate': lambda v: number(v) and 0 <= v < 1,
    'model.head.temperature': number,  # its constructor knows the range
    'randomness.seed': lambda v: v is None or whole(v, 0),
}


@settings(max_examples=60, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES, min_size=1))
def test_any_value_is_taken_or_named(changes):
    """Whatever a config holds, the check ends in nothing or in one message with each such key."""
    cfg = DIGITS
    for key, value in changes.items():
        cfg = change(cfg, key, value)
    try:
        check_config(cfg)
        named = set()
    except ValueError as error:
        named = set(re.findall(r'^  ([\w.]+)=', str(error), re.MULTILINE))
    assert named == {key for key, value in changes.items() if not GOOD[key](value)}


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('head.temperature', None),
        ('head.temperature', '0.2'),
        ('head.label_smoothing', None),
        ('data_preprocessor.num_mix', 2.5),
        ('data_preprocessor.num_mix', None),
        ('data_preprocessor.mix_prob', None),
    ],
)
def test_a_plain_build_refuses_them_too(key, value):
    cfg = change(tiny_config(), key, value)
    with pytest.raises(ValueError, match=re.escape(f'{key}={value}')):
        MODELS.build(cfg)


@pytest.mark.parametrize('share', [None, '0.9', [1]])
def test_the_momentum_hook_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match=r'end_momentum=.* must be in'):
        MomentumScheduleHook(end_momentum=share)
