"""Bad input is refused before training, with what is wrong and how to mend it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmpatchmix.cli.check_run import check_run
from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.cli.describe_run import describe_run
from tests.engine.tiny_run import tiny_run_config

CONFIGS = sorted(Path('configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_have_no_unknown_key(path):
    check_config(Config.fromfile(path))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'model.head.tempratur': 0.1}, r'model\.head\.tempratur: .* did you mean temperature'),
        ({'model.data_preprocessor.num_mixs': 3}, r'num_mixs: .* did you mean num_mix'),
        ({'model.backbone.drop_path': 0.1}, r'backbone\.drop_path: .* drop_path_rate'),
        ({'model.type': 'mmpatchmix.PatchMx'}, r'no mmpatchmix\.PatchMx; did you mean .*PatchMix'),
        ({'default_hooks.momentum.start': 0.9}, r'momentum\.start: .* momentum'),
        ({'param_scheduler.0.warmup': 3}, r'param_scheduler\.0\.warmup'),
        ({'val_cfg.neighbors': 3}, r'val_cfg\.neighbors'),
        ({'optim_wraper': dict()}, r'optim_wraper: did you mean optim_wrapper'),
        ({'train_dataloder': dict()}, r'train_dataloder: did you mean train_dataloader'),
    ],
)
def test_misspelt_keys_are_named_with_the_right_ones(tmp_path, option, message):
    cfg = tiny_run_config(tmp_path)
    cfg.merge_from_dict(option)
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def refusal(tmp_path, *more, **options):
    cfg = tiny_run_config(tmp_path, **options)
    for change in more:
        change(cfg)
    with pytest.raises(ValueError) as caught:
        check_run(Runner.from_cfg(cfg))
    return str(caught.value)


def test_num_mix_above_the_batch(tmp_path):
    message = refusal(tmp_path, **{'model.data_preprocessor.num_mix': 9})
    assert 'num_mix=9 is larger than the batch of 8' in message


def test_num_mix_above_the_patches(tmp_path):
    message = refusal(tmp_path, batch_size=24, **{'model.data_preprocessor.num_mix': [2, 17]})
    assert 'num_mix=17' in message and '16' in message


def test_crops_that_the_vit_cannot_cut(tmp_path):
    crops = dict(type='mmpatchmix.MultiCrop', global_size=32, num_local=1, local_size=20)

    def with_local_crops(cfg):
        cfg.train_dataloader.dataset.pipeline[0] = crops
        cfg.model.data_preprocessor.patch_size = 4

    message = refusal(tmp_path, with_local_crops)
    assert 'local_views is 20x20' in message and 'backbone.patch_size=8' in message


def test_crops_that_the_mix_cannot_cut(tmp_path):
    message = refusal(tmp_path, **{'model.data_preprocessor.patch_size': 6})
    assert 'data_preprocessor.patch_size=6 does not divide' in message


def test_a_batch_of_one(tmp_path):
    message = refusal(tmp_path, batch_size=1, **{'model.data_preprocessor.num_mix': 1})
    assert 'at least 2 images per rank' in message


def test_a_last_batch_of_one(tmp_path):
    message = refusal(tmp_path, num_images=17, **{'train_dataloader.drop_last': False})
    assert 'last batch of an epoch would hold 1 of 17' in message


def test_too_few_images_for_one_batch(tmp_path):
    assert '5 images per rank do not fill one batch of 8' in refusal(tmp_path, num_images=5)


def test_a_pipeline_without_views(tmp_path):
    def single_view(cfg):
        cfg.train_dataloader.dataset.pipeline = [dict(type='PackInputs')]

    assert "no ['view_1', 'view_2']" in refusal(tmp_path, single_view)


def test_what_fits_passes(tmp_path):
    check_run(Runner.from_cfg(tiny_run_config(tmp_path)))


def test_schedules_that_end_elsewhere_are_said(tmp_path):
    cfg = tiny_run_config(tmp_path, epochs=4)
    cfg.train_cfg.max_epochs = 3
    with pytest.warns(UserWarning, match=r'schedules end at epoch 4.*, the run at epoch 3'):
        check_run(Runner.from_cfg(cfg))


@pytest.mark.parametrize(('scale', 'shown'), [(True, '0.0001875'), (False, '0.003')])
def test_the_recipe_tells_the_rate_that_will_be_used(tmp_path, scale, shown):
    """8 images in the place of 128: 3e-3 * 8 / 128."""
    cfg = tiny_run_config(tmp_path)
    cfg.auto_scale_lr.enable = scale
    runner = Runner.from_cfg(cfg)
    lines = {line.split()[0]: line for line in describe_run(runner)}
    assert f'0 -> {shown} ' in lines['learning']
    assert ('--auto-scale-lr makes it 0.0001875' in lines['learning']) == (not scale)
    assert '8 x 1 ranks = 8' in lines['batch']
    assert '2 epochs x 6 = 12 iterations' in lines['length']
    assert '0.95 -> 1 (cosine' in lines['momentum']
    trained = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    assert f'{trained:,}' in lines['trained']
    runner.train()
    peak = max(json.loads(line)['lr'] for line in scalars(tmp_path) if 'loss' in line)
    assert peak == pytest.approx(float(shown), rel=0.05)


def scalars(work_dir):
    (path,) = Path(work_dir).glob('*/vis_data/scalars.json')
    return path.read_text().splitlines()


def test_corrupt_files_of_a_run_stop_it_when_they_are_many(tmp_path):
    """The Runner itself ends with the message of the data set."""
    images = tmp_path / 'images'
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(40):
        cv2.imwrite(str(images / f'{index}.png'), generator.integers(0, 255, (40, 40, 3), 'uint8'))
    for index in range(8):
        (images / f'{index}.png').write_bytes(b'not an image')
    cfg = tiny_run_config(tmp_path / 'run', epochs=2, num_images=None)
    cfg.train_dataloader.dataset = dict(
        type='mmpatchmix.ImageFolder',
        data_root=str(images),
        pipeline=[dict(type='LoadImageFromFile'), *cfg.train_dataloader.dataset.pipeline],
    )
    runner = Runner.from_cfg(cfg)
    torch.manual_seed(0)
    with pytest.raises((ValueError, RuntimeError), match=r'unreadable|cannot be'):
        runner.train()
