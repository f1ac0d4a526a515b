"""Segmentation configs train a step and predict; labels of the scenes are those of their masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from pycocotools.coco import COCO

from examples.digit_scenes import write_digit_scenes
from mmpatchmix.models import PatchMixViT
from mmpatchmix.models.detection.linear_seg_head import LinearSegHead
from mmpatchmix.registry import MODELS
from tests.plain_runner import shrink

ROOT = Path(__file__).parents[2] / 'configs/ade20k'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_digit_scenes(root, num_train=4, num_val=4)
    return root


def small(name, scenes, work_dir):
    """Return a config with narrow networks and 48 pixels."""
    cfg = Config.fromfile(ROOT / name)
    shrink(cfg, None, scenes)
    cfg.work_dir = str(work_dir)
    return cfg


def save_pretraining(backbone, path):
    """Write a checkpoint of a pre-training run for the backbone of a config."""
    sizes = {key: backbone[key] for key in ('arch', 'img_size', 'patch_size')}
    vit = PatchMixViT(**sizes)
    vit.init_weights()
    state = {f'momentum_encoder.backbone.{key}': value for key, value in vit.state_dict().items()}
    heads = backbone['arch']['num_heads']
    meta = dict(cfg=f'model = dict(backbone=dict(arch=dict(num_heads={heads})))')
    torch.save(dict(state_dict=state, meta=meta), path)
    return vit


@pytest.mark.parametrize(
    ('name', 'classes'),
    [
        ('upernet_vit-digits_scenes.py', 11),
        ('upernet_vit-s_160k.py', 150),
        ('linear_vit-s.py', 150),
    ],
)
def test_config_starts_from_a_pre_training_trains_a_step_and_predicts(
    name, classes, scenes, tmp_path
):
    cfg = small(name, scenes, tmp_path)
    vit = save_pretraining(cfg.model.backbone, tmp_path / 'epoch_1.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'epoch_1.pth')
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    for key, value in vit.named_parameters():
        if f'backbone.{key}' in before or 'linear' in name:
            assert torch.equal(before[f'backbone.{key}'], value), key
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    runner.model.train()
    losses = runner.model.train_step(next(iter(runner.train_dataloader)), wrapper)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in losses.values())
    moved = {k for k, v in runner.model.named_parameters() if not torch.equal(v, before[k])}
    assert any(key.startswith('decode_head') for key in moved)
    assert any(key.startswith('backbone') for key in moved) == ('linear' not in name)
    runner.model.eval()
    with torch.no_grad():
        (result, *_) = runner.model.test_step(next(iter(runner.test_dataloader)))
    assert result.seg_logits.data.shape == (classes, 128, 128)  # of the file
    assert result.pred_sem_seg.data.shape == (1, 128, 128)


def test_the_linear_head_normalises_and_multiplies():
    head = LinearSegHead(in_channels=5, num_classes=3)
    assert {name for name, _ in head.named_children()} >= {'norm', 'conv_seg'}
    assert sum(parameter.numel() for parameter in head.parameters()) == 2 * 5 + 3 * 5 + 3
    x = torch.randn(4, 5, 2, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    axes = dict(dim=(0, 2, 3), keepdim=True)
    normed = (x - x.mean(**axes)) / x.var(**axes, unbiased=False).sqrt()
    expected = torch.einsum('nchw,kc->nkhw', normed, head.conv_seg.weight[:, :, 0, 0])
    expected = expected + head.conv_seg.bias[:, None, None]
    assert torch.allclose(head((x,)), expected, atol=1e-4)


@pytest.mark.parametrize('num_layers', [2, 14])
def test_the_linear_probe_freezes_all_blocks_and_uses_the_last(num_layers):
    options = dict(Config.fromfile(ROOT / 'linear_vit-s.py').model.backbone, init_cfg=None)
    arch = dict(embed_dims=12, num_layers=num_layers, num_heads=3, feedforward_channels=24)
    backbone = MODELS.build(dict(options, arch=arch, img_size=32))
    assert not any(parameter.requires_grad for parameter in backbone.layers.parameters())
    assert backbone.out_indices == [num_layers - 1]


def test_only_the_map_of_the_last_block_is_normed():
    cfg = Config.fromfile(ROOT / 'linear_vit-s.py')
    arch = dict(embed_dims=12, num_layers=2, num_heads=3, feedforward_channels=24)
    options = dict(cfg.model.backbone, arch=arch, img_size=32, out_indices=[0, 1], frozen_stages=-1)
    torch.manual_seed(0)
    normed = MODELS.build(dict(options, init_cfg=None))
    plain = MODELS.build(dict(options, init_cfg=None, final_norm=False))
    state = normed.state_dict()
    plain.load_state_dict({key: state[key] for key in state if not key.startswith('ln1.')})
    images = torch.randn(2, 3, 32, 48)
    first, last = normed(images)
    plain_first, plain_last = plain(images)
    assert torch.equal(first, plain_first)
    expected = normed.ln1(plain_last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(last, expected, atol=1e-6)


def test_labels_are_the_visible_masks(scenes):
    coco = COCO(str(scenes / 'annotations/instances_val.json'))
    for image in coco.dataset['images']:
        expected = np.zeros((128, 128), np.uint8)
        for one in coco.imgToAnns[image['id']]:
            expected[coco.annToMask(one).astype(bool)] = one['category_id']
        found = cv2.imread(str(scenes / 'labels/val' / image['file_name']), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(found, expected) and found.any()


def test_schedules_are_160000_and_40000_iterations():
    for name, wanted in (('upernet_vit-b_160k.py', 160_000), ('linear_vit-s.py', 40_000)):
        cfg = Config.fromfile(ROOT / name)
        epochs = cfg.train_cfg.max_epochs
        iterations = epochs * -(-20_210 // cfg.auto_scale_lr.base_batch_size)
        assert wanted <= iterations < 1.02 * wanted
        assert cfg.param_scheduler[-1].end == epochs
