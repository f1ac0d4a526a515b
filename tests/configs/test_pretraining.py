"""Pre-training recipes have the published values, and every model builds at full size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmpatchmix.registry import MODELS, TRANSFORMS

CONFIGS = sorted(Path('configs').glob('patchmix_*.py'))

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
    widths = {'t': 192, 's': 384, 'b': 768, 'l': 1024, 'h': 1280, 'digits': 96}
    width = widths[path.stem.split('_')[1].removeprefix('vit-')]
    width = 64 if path.stem == 'patchmix_vit-digits_plain' else width  # the demo's is smaller
    assert model.backbone.cls_token.shape == (1, 1, width)
    assert len(list(model.neck.children())) == 6 + 1  # three linear layers, three norms, ReLU
    assert not model.neck.bn2.affine and not model.head.predictor.bn1.affine


def test_plain_recipe_changes_no_pixel_before_it_mixes():
    cfg = Config.fromfile('configs/patchmix_vit-s_plain.py')
    image = np.random.default_rng(0).random((224, 224, 5), np.float32) * 255
    *_, crops, pack = (TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline)
    views = pack(crops(dict(img=image)))['inputs']
    assert set(views) == {'view_1', 'view_2'}
    preprocessor = dict(cfg.model.data_preprocessor, mean=[0.0] * 5, std=[1.0] * 5)
    preprocessor = MODELS.build(preprocessor)
    batch = {name: view[None].repeat(4, 1, 1, 1) for name, view in views.items()}
    inputs = preprocessor(dict(inputs=batch), training=True)['inputs']
    for name in ('view_1', 'view_2'):
        assert torch.equal(inputs[name][0], torch.from_numpy(image).permute(2, 0, 1))
