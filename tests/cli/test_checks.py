"""Configs and runs that do not fit are refused before training, naming the key."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmpatchmix.cli.check_run import check_run
from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.cli.describe_run import describe_run
from tests.cli.parts import build_parts, get_refusal
from tests.engine.tiny_run import tiny_run_config

CONFIGS = sorted(Path('configs').glob('**/*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_pass(path):
    check_config(Config.fromfile(path))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'model.head.tempratur': 0.1}, r'model\.head\.tempratur: .* did you mean temperature'),
        ({'model.backbone.drop_path': 0.1}, r'backbone\.drop_path: .* drop_path_rate'),
        ({'model.type': 'mmpatchmix.PatchMx'}, r'no mmpatchmix\.PatchMx; did you mean .*PatchMix'),
        ({'param_scheduler.0.warmup': 3}, r'param_scheduler\.0\.warmup'),
        ({'val_cfg.neighbors': 3}, r'val_cfg\.neighbors'),
        ({'optim_wraper': dict()}, r'optim_wraper: did you mean optim_wrapper'),
    ],
)
def test_misspelt_keys_are_named_with_the_right_ones(tmp_path, option, message):
    cfg = tiny_run_config(tmp_path)
    cfg.merge_from_dict(option)
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def use_local_crops(cfg):
    cfg.train_dataloader.dataset.pipeline[0] = dict(
        type='mmpatchmix.MultiCrop', global_size=32, num_local=1, local_size=20
    )
    cfg.model.data_preprocessor.patch_size = 4


def use_single_view(cfg):
    cfg.train_dataloader.dataset.pipeline = [dict(type='PackInputs')]


NUM_MIX, PATCH = 'model.data_preprocessor.num_mix', 'model.data_preprocessor.patch_size'
REFUSED = [
    ({NUM_MIX: 9}, 'num_mix=9 is larger than the batch of 8'),
    ({'batch_size': 24, NUM_MIX: [2, 17]}, 'num_mix=17'),
    (use_local_crops, 'local_views is 20x20 pixels, which model.backbone.patch_size=8'),
    ({PATCH: 6}, 'data_preprocessor.patch_size=6 does not divide'),
    ({'batch_size': 1, NUM_MIX: 1}, 'at least 2 images per rank'),
    (
        {'num_images': 50, NUM_MIX: 3, 'train_dataloader.drop_last': False},
        'num_mix=3 is larger than the last batch of 2 images',
    ),
    ({'num_images': 17, 'train_dataloader.drop_last': False}, 'would hold 1 of 17'),
    ({'num_images': 5}, '5 images per rank do not fill one batch of 8'),
    (use_single_view, "no ['view_1', 'view_2']"),
]


@pytest.mark.parametrize(('change', 'message'), REFUSED, ids=[text for _, text in REFUSED])
def test_runs_whose_parts_do_not_fit_are_refused(tmp_path, change, message):
    cfg = tiny_run_config(tmp_path, **(change if isinstance(change, dict) else {}))
    if callable(change):
        change(cfg)
    assert message in get_refusal(cfg)


def test_a_run_that_fits_passes_and_another_schedule_end_warns(tmp_path, recwarn):
    cfg = tiny_run_config(tmp_path, epochs=4)
    check_run(build_parts(cfg))
    assert not [each for each in recwarn if 'schedules' in str(each.message)]
    cfg.train_cfg.max_epochs = 3
    with pytest.warns(UserWarning, match=r'schedules end at epoch 4.*, the run at epoch 3'):
        check_run(build_parts(cfg))


@pytest.mark.parametrize(('scale', 'shown'), [(True, '0.0001875'), (False, '0.003')])
def test_the_described_learning_rate_is_used(tmp_path, scale, shown):
    """A batch of 8 instead of 128: 3e-3 * 8 / 128."""
    cfg = tiny_run_config(tmp_path, epochs=1 if scale else 2)
    cfg.auto_scale_lr.enable = scale
    runner = Runner.from_cfg(cfg)
    lines, facts = describe_run(runner)
    assert f'  batch         {facts["batch"]}' in lines
    assert f'0 -> {shown} ' in facts['learning rate']
    assert ('--auto-scale-lr makes it 0.0001875' in facts['learning rate']) == (not scale)
    assert facts['batch'] == '8 x 1 ranks = 8'
    trained = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    assert facts['trained'] == f'{trained:,}'
    assert facts['momentum'].startswith('0.95 -> 1 (cosine')
    if not scale:
        assert facts['length'] == '2 epochs x 6 = 12 iterations'
        return
    runner.train()
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = path.read_text().splitlines()
    peak = max(json.loads(line)['lr'] for line in lines if 'loss' in line)
    assert peak == pytest.approx(float(shown), rel=0.05)
