"""Pre-training recipes have the published values, build, and train a step at reduced size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmpatchmix.cli.arguments import set_data_root
from mmpatchmix.cli.check_run import check_run, run_one_step
from mmpatchmix.cli.describe_run import describe_run
from mmpatchmix.cli.verb import build_runner
from mmpatchmix.registry import MODELS

CONFIGS = sorted(Path('configs').glob('patchmix_*.py'))
# Those that differ from the others in more than widths, rates and the data set.
KINDS = ('vit-s_in1k', 'vit-t_cifar10', 'vit-s_cifar100', 'vit-l_in1k_fsdp', 'vit-digits')
KINDS += ('vit-digits_scenes', 'vit-s_folder', 'vit-s_any', 'vit-s_continue')

# Table of the recipes: base lr per 256 images, weight decay, momentum, batch / epochs /
# warm-up, crops, width, heads, patch (arXiv 2306.12243).
IN1K = dict(batch=1024, epochs=300, warmup=10, decay=(0.04, 0.4), size=224, scale=(0.35, 1.0))
CIFAR = dict(batch=512, epochs=800, warmup=100, decay=(0.04, 0.4), size=32, scale=(0.1, 1.0))
TINY = {**CIFAR, 'decay': (0.02, 0.2)}
RECIPES = {
    'patchmix_vit-s_in1k': dict(IN1K, lr=5e-4, width=384, heads=12, patch=16, local=8),
    'patchmix_vit-b_in1k': dict(IN1K, lr=7.5e-4, width=768, heads=12, patch=16, local=8),
    'patchmix_vit-s_cifar10': dict(CIFAR, lr=5e-4, width=384, heads=12, patch=2, local=0),
    'patchmix_vit-b_cifar10': dict(CIFAR, lr=7.5e-4, width=768, heads=12, patch=2, local=0),
    'patchmix_vit-t_cifar10': dict(TINY, lr=2e-3, width=192, heads=3, patch=2, local=0),
}
for name in ('s', 'b', 't'):
    RECIPES[f'patchmix_vit-{name}_cifar100'] = RECIPES[f'patchmix_vit-{name}_cifar10']


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_the_papers(name):
    recipe = RECIPES[name]
    cfg = Config.fromfile(f'configs/{name}.py')
    warmup, cosine, decay = cfg.param_scheduler
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'AdamW'
    assert optimizer.lr == pytest.approx(recipe['lr'] * recipe['batch'] / 256)
    assert cfg.auto_scale_lr.base_batch_size == recipe['batch']
    assert (optimizer.weight_decay, decay.eta_min) == recipe['decay']
    assert (warmup.begin, warmup.end, cosine.begin) == (0, recipe['warmup'], recipe['warmup'])
    assert cosine.end == decay.end == cfg.train_cfg.max_epochs == recipe['epochs']
    assert cosine.eta_min == 1e-6
    assert all(s.by_epoch and s.convert_to_iter_based for s in cfg.param_scheduler)
    assert cfg.default_hooks.momentum.momentum == 0.996
    assert cfg.default_hooks.momentum.end_momentum == 1.0
    assert (cfg.model.momentum_encoder is None) == ('vit-t' in name)

    backbone = cfg.model.backbone
    assert (backbone.arch.embed_dims, backbone.arch.num_heads) == (recipe['width'], recipe['heads'])
    assert backbone.arch.num_layers == 12
    assert backbone.arch.feedforward_channels == 4 * recipe['width']
    assert (backbone.img_size, backbone.patch_size) == (recipe['size'], recipe['patch'])
    assert backbone.drop_path_rate == 0.1
    assert cfg.model.data_preprocessor.patch_size == recipe['patch']
    assert cfg.model.data_preprocessor.num_mix == 2
    assert cfg.model.head.temperature == 0.2
    crops = cfg.train_dataloader.dataset.pipeline[-2]
    assert (crops.global_size, tuple(crops.global_scale)) == (recipe['size'], recipe['scale'])
    assert crops.get('num_local', 0) == recipe['local']
    if recipe['local']:
        assert (crops.local_size, tuple(crops.local_scale)) == (96, (0.05, 0.35))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_model_builds_at_full_size(path):
    cfg = Config.fromfile(path)
    with torch.device('meta'):  # shapes without memory
        model = MODELS.build(cfg.model)
    widths = {'vit-t': 192, 'vit-s': 384, 'vit-b': 768, 'vit-digits': 96}
    widths |= {'vit-l': 1024, 'vit-h': 1280}
    width = next(width for name, width in widths.items() if name in path.stem)
    assert model.backbone.cls_token.shape == (1, 1, width)
    assert len(list(model.neck.children())) == 6 + 1  # three linear layers, three norms, ReLU
    assert not model.neck.bn2.affine and not model.head.predictor.bn1.affine


def reduce(cfg, path, data_root):
    """Smaller in width, depth, crops and batch; everything else as shipped."""
    cfg.model.backbone.arch.update(
        embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48
    )
    cfg.model.neck.update(in_channels=24, hid_channels=32)
    cfg.model.head.predictor.update(hid_channels=32)
    loaders = [cfg.train_dataloader]
    for name in ('val', 'test') if cfg.val_cfg else ():
        cfg[f'{name}_evaluator'].num_neighbors = (3,)
        loaders += [cfg[f'{name}_dataloader'], cfg[f'{name}_cfg'].bank_dataloader]
    for loader in loaders:
        loader.update(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
        dataset = loader.dataset
        if dataset.type in ('CIFAR10', 'CIFAR100'):  # needs a download: digits in their place
            split = 'train' if dataset.split == 'train' else 'test'
            loader.dataset = dict(
                type='mmpatchmix.Digits', split=split, indices=12, pipeline=dataset.pipeline
            )
    of_a_folder = path.stem.endswith(('_folder', '_continue', '_any'))
    if of_a_folder:
        data_root = data_root / 'train'
    if 'in1k' in path.stem or of_a_folder:
        set_data_root(cfg, str(data_root))
    if of_a_folder:
        for loader in loaders:
            loader.dataset.holdout = 0.4


def test_another_size_takes_a_real_step(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv('PATCHMIX_IMG_SIZE', '160')
    path = Path('configs/patchmix_vit-s_in1k.py')
    cfg = Config.fromfile(path)
    reduce(cfg, path, data_root)
    cfg.launcher, cfg.work_dir = 'none', str(tmp_path)
    cfg.experiment_name = f'160-{tmp_path.name}'
    runner = build_runner(cfg)
    check_run(runner)
    assert runner.model.backbone.pos_embed.shape[1] == 1 + 10 * 10
    run_one_step(runner)
    assert 'knn/top1' in runner.val_loop.evaluate()


@pytest.mark.parametrize('name', KINDS)
def test_dry_run_takes_a_real_step(name, data_root, tmp_path):
    path = Path(f'configs/patchmix_{name}.py')
    cfg = Config.fromfile(path)
    reduce(cfg, path, data_root)
    if path.stem.endswith('_scenes'):  # which views do not crop
        cfg.train_dataloader.dataset.data_root = str(tmp_path / 'ink')
        (tmp_path / 'ink').mkdir()
        for index in range(8):
            ink = np.random.default_rng(index).integers(0, 256, (32, 32), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / f'ink/{index}.png'), ink)
    cfg.launcher, cfg.work_dir = 'none', str(tmp_path)
    cfg.experiment_name = f'{path.stem}-{tmp_path.name}'
    runner = build_runner(cfg)
    check_run(runner)
    text = '\n'.join(describe_run(runner)[0])
    assert 'learning rate 0 -> ' in text and 'weight decay' in text
    views = '2 of 32' if 'cifar' in path.stem else '2 of 224 and 8 of 96'
    views = '2 per image, by' if 'digits' in path.stem else views
    assert views in text
    result = run_one_step(runner)
    terms = ['source', 'mix_source', 'mix_mix']
    if any(step.get('num_local') for step in cfg.train_dataloader.dataset.pipeline):
        terms += ['local', 'mix_local']
    losses = [result[f'loss_{term}'] for term in terms]
    assert result['loss'] == pytest.approx(sum(losses), rel=1e-5)
    # Untrained and with 4 images, no term can be far from the entropy of a fair guess.
    assert all(0.2 < loss < 8 for loss in losses)
    # The rate starts at 0; that a gradient came back to the pixels shows in AdamW's state.
    state = runner.optim_wrapper.optimizer.state
    assert state[runner.model.backbone.patch_embed.projection.weight]['exp_avg'].abs().sum() > 0
    if cfg.val_cfg:
        assert 'knn/top1' in runner.val_loop.evaluate()
