"""Linear probes and fine-tuning: the recipes' figures, and one real step of each config."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

import mmpatchmix.models.vit  # noqa: F401
from mmpatchmix.checkpoints import ViTSpec
from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.convert.features import build_vit

ROOT = Path(__file__).parents[2]
SIZES = dict(t=(192, 3), s=(384, 12), b=(768, 12))
DATA = dict(in1k=(1000, 224, 16, 1024), cifar10=(10, 32, 2, 512), cifar100=(100, 32, 2, 512))
BASE_LR = dict(linear=dict(t=0.05, s=0.02, b=0.01), finetune=dict(t=1e-3, s=5e-4, b=5e-4))
# Images per GPU and GPUs that the headers name.
GPUS = dict(linear=dict(in1k=4), finetune=dict(in1k=8))
SIZES_AND_DATA = [(size, data) for size in SIZES for data in DATA if (size, data) != ('t', 'in1k')]
CASES = [(kind, *case) for kind in BASE_LR for case in SIZES_AND_DATA]


def load(kind, size, data):
    return Config.fromfile(ROOT / 'configs' / kind / f'vit-{size}_{data}.py')


@pytest.mark.parametrize(('kind', 'size', 'data'), CASES)
def test_recipe(kind, size, data):
    cfg = load(kind, size, data)
    width, heads = SIZES[size]
    num_classes, img_size, patch_size, batch = DATA[data]
    assert cfg.train_dataloader.batch_size * GPUS[kind].get(data, 1) == batch
    assert cfg.auto_scale_lr.base_batch_size == batch
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == pytest.approx(BASE_LR[kind][size] * batch / 256)
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == 100
    backbone = cfg.model.backbone
    assert dict(backbone.arch) == dict(
        embed_dims=width, num_layers=12, num_heads=heads, feedforward_channels=4 * width
    )
    assert (backbone.img_size, backbone.patch_size) == (img_size, patch_size)
    assert cfg.model.num_classes == num_classes
    assert cfg.model.data_preprocessor.to_rgb == (data == 'in1k')  # CIFAR comes as RGB
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        kinds = dict(in1k='mmpatchmix.ImageFolder', cifar10='CIFAR10', cifar100='CIFAR100')
        assert loader.dataset.type == kinds[data]
    resize, crop = cfg.val_dataloader.dataset.pipeline[-3:-1]
    assert resize.scale == img_size * 256 // 224 and resize.interpolation == 'bicubic'
    assert crop.type == 'CenterCrop' and crop.crop_size == img_size
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    check_config(cfg)
    header = f'configs/{kind}/vit-{size}_{data}.py'
    text = (ROOT / header).read_text().split('_base_')[0]
    assert header in text and '.checkpoint=' in text
    if kind == 'linear':
        assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.9, 0)
        assert backbone.frozen_stages == 12
        assert steps[-3:] == ['RandomResizedCrop', 'RandomFlip', 'PackInputs']
        return
    assert (optimizer.type, optimizer.weight_decay) == ('AdamW', 0.05)
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.75
    assert cfg.param_scheduler[0].end == 10
    assert backbone.drop_path_rate == 0.1
    assert cfg.model.head.loss.label_smooth_val == 0.1
    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.type, mixup.alpha, cutmix.type, cutmix.alpha) == ('Mixup', 0.8, 'CutMix', 1.0)
    crop = 'RandomResizedCrop' if data == 'in1k' else 'RandomCrop'
    assert steps[-5:] == [crop, 'RandomFlip', 'RandAugment', 'RandomErasing', 'PackInputs']
    rand, erase = cfg.train_dataloader.dataset.pipeline[-3:-1]
    assert (rand.magnitude_level, rand.magnitude_std, rand.policies) == (9, 0.5, 'timm_increasing')
    assert erase.erase_prob == 0.25
    fill = erase.fill_color if data != 'in1k' else erase.fill_color[::-1]  # files come as BGR
    assert fill == cfg.model.data_preprocessor.mean
    assert rand.hparams.pad_val == [round(value) for value in erase.fill_color]
    assert cfg.custom_hooks[0].momentum == pytest.approx(1 - 0.99996)


def reduce(cfg, data_root, tmp_path):
    """Reduce the network, the images and the length; keep everything else."""
    img_size = 32
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    cfg.model.backbone.update(arch=arch, img_size=img_size, patch_size=8)
    if 'frozen_stages' in cfg.model.backbone:
        cfg.model.backbone.frozen_stages = 2
    cfg.model.head.in_channels = 24
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
        folder = dict(type='mmpatchmix.ImageFolder', data_root=str(data_root), labels=True)
        split = 'train' if loader is cfg.train_dataloader else 'val'
        steps = list(loader.dataset.pipeline)
        if steps[0].type != 'LoadImageFromFile':
            steps = [dict(type='LoadImageFromFile'), *steps]
        for step in steps:
            if step['type'] == 'RandomResizedCrop':
                step['scale'] = img_size
            elif step['type'] == 'ResizeEdge':
                step['scale'] = 36
            elif 'crop_size' in step:
                step['crop_size'] = img_size
        loader.dataset = dict(folder, data_prefix=split, pipeline=steps, test_mode=split == 'val')
    spec = ViTSpec(**arch, patch_size=8, img_size=img_size)
    torch.manual_seed(0)
    vit = build_vit(spec)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = {f'momentum_encoder.backbone.{key}': value for key, value in vit.state_dict().items()}
    meta = dict(mmpatchmix=asdict(spec))
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'pretrained.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    cfg.work_dir = str(tmp_path / 'run')
    cfg.train_cfg.max_epochs = 1
    cfg.train_cfg.val_interval = 1
    cfg.param_scheduler = []
    cfg.experiment_name = tmp_path.name
    return vit.state_dict()


# The siblings differ in sizes only, which are reduced here.
@pytest.mark.parametrize('data', ['in1k', 'cifar10'])
@pytest.mark.parametrize('kind', BASE_LR)
def test_one_epoch(kind, data, data_root, tmp_path):
    cfg = load(kind, 's', data)
    before = reduce(cfg, data_root, tmp_path)
    runner = Runner.from_cfg(cfg)
    head = runner.model.head.fc.weight.detach().clone()
    runner.train()
    after = runner.model.backbone.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    if kind == 'linear':
        # No weight and no buffer of the backbone, and no other either.
        assert changed == [] and list(before) == list(after)
        assert not any(module.training for module in runner.model.backbone.modules())
    else:
        assert set(changed) == set(before)
        scalars = runner.message_hub.log_scalars
        assert 'val/accuracy/top1' in scalars and 'val/accuracy/top1_origin' in scalars
    assert not torch.equal(head, runner.model.head.fc.weight)
    assert list((tmp_path / 'run').glob('best_accuracy_top1_epoch_1.pth'))


def test_a_backbone_without_a_checkpoint_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpatchmix.models.vit.print_log', lambda *a: said.append(a[0]))
    cfg = load('finetune', 's', 'cifar10')
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    cfg.model.backbone.arch = arch
    MODELS.build(cfg.model.backbone).init_weights()
    assert said == [
        'The backbone starts from random weights: model.backbone.init_cfg.checkpoint is not set.'
    ]
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        MODELS.build(cfg.model.backbone).init_weights()
