"""Linear probes and fine-tuning: the recipes' values, and an epoch at reduced size."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS, TRANSFORMS

import mmpatchmix.models.vit  # noqa: F401
from mmpatchmix.checkpoints import ViTSpec
from mmpatchmix.cli.describe_run import describe_run
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
    assert cfg.model.get('num_classes', 1000) == num_classes
    assert cfg.model.data_preprocessor.to_rgb == (data == 'in1k')  # CIFAR comes as RGB
    kinds = dict(in1k='mmpatchmix.ImageFolder', cifar10='CIFAR10', cifar100='CIFAR100')
    assert cfg.train_dataloader.dataset.type == kinds[data]
    resize, crop = cfg.val_dataloader.dataset.pipeline[-3:-1]
    assert resize.type == 'mmpatchmix.ResizeEdge'
    assert resize.scale == img_size * 256 // 224 and resize.interpolation == 'bicubic'
    assert crop.type == 'CenterCrop' and crop.crop_size == img_size
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert '.checkpoint=' in Path(cfg.filename).read_text().split('_base_')[0]
    if kind == 'linear':
        assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.9, 0)
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
    assert data == 'in1k' or steps[-6] == 'ResizeEdge'
    rand, erase = cfg.train_dataloader.dataset.pipeline[-3:-1]
    assert (rand.magnitude_level, rand.magnitude_std, rand.policies) == (9, 0.5, 'timm_increasing')
    assert erase.erase_prob == 0.25
    fill = erase.fill_color if data != 'in1k' else erase.fill_color[::-1]  # files come as BGR
    assert fill == cfg.model.data_preprocessor.mean
    assert rand.hparams.pad_val == [round(value) for value in erase.fill_color]
    (ema,) = cfg.custom_hooks
    assert ema.momentum == pytest.approx(1 - 0.99996)
    # Weights of the initial values, and of the last fifth, after 9,700 and 125,000 iterations.
    for num_iters in (9_700, 125_000):
        kept = [1 - max(ema.momentum, ema.gamma / (ema.gamma + n)) for n in range(1, num_iters)]
        assert math.prod(kept) < 1e-15
        assert 1 - math.prod(kept[-num_iters // 5 :]) == pytest.approx(0.65, abs=0.03)


@pytest.mark.parametrize('size', ['24', '32', '64'])
def test_training_views_of_cifar_have_the_size_of_the_test_views(monkeypatch, size):
    monkeypatch.setenv('PATCHMIX_IMG_SIZE', size)
    cfg = load('finetune', 't', 'cifar100')
    init_default_scope(cfg.default_scope)
    image = dict(img=np.full((32, 32, 3), 200, np.uint8), gt_label=1)
    steps = cfg.train_dataloader.dataset.pipeline[:2]
    view = Compose([TRANSFORMS.build(step) for step in steps])(dict(image))['img']
    assert view.shape == (int(size), int(size), 3)
    assert (view == 200).mean() > 0.7  # at most an eighth of black border at each side


@pytest.mark.parametrize('num_layers', [6, 12, 24])
def test_a_linear_probe_freezes_a_vit_of_any_depth(num_layers):
    backbone = load('linear', 's', 'in1k').model.backbone
    backbone.arch.update(embed_dims=12, num_layers=num_layers, num_heads=2, feedforward_channels=12)
    vit = MODELS.build(backbone)
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    vit.train()
    assert not any(module.training for module in vit.modules())


def reduce(cfg, tmp_path):
    """Reduce the network, the images and the length; return the state of the checkpoint."""
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    cfg.model.backbone.update(arch=arch, patch_size=8)
    cfg.model.head.in_channels = 24
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
        kept = {key: loader.dataset[key] for key in ('split', 'pipeline')}
        loader.dataset = dict(type='mmpatchmix.Digits', indices=8, **kept)
    spec = ViTSpec(**arch, patch_size=8, img_size=32)
    torch.manual_seed(0)
    vit = build_vit(spec)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = {f'momentum_encoder.backbone.{key}': value for key, value in vit.state_dict().items()}
    images = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], resize=64, crop=64)
    meta = dict(mmpatchmix=asdict(spec) | dict(preprocessing=images))
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'pretrained.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    cfg.work_dir = str(tmp_path / 'run')
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.param_scheduler = []
    cfg.experiment_name = tmp_path.name
    return vit.state_dict()


@pytest.mark.parametrize('kind', BASE_LR)
def test_one_epoch_trains_the_backbone_only_in_fine_tuning(kind, tmp_path):
    cfg = load(kind, 's', 'cifar10')
    before = reduce(cfg, tmp_path)
    runner = Runner.from_cfg(cfg)
    start = describe_run(runner)[1]['starts from']
    assert '<- was trained with the mean (1.0, 2.0, 3.0), and the config has (12' in start
    head = runner.model.head.fc.weight.detach().clone()
    runner.train()
    after = runner.model.backbone.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert list(before) == list(after)
    if kind == 'linear':
        assert changed == []
        assert not any(module.training for module in runner.model.backbone.modules())
    else:
        assert changed == list(before)
        scalars = runner.message_hub.log_scalars
        assert 'val/accuracy/top1' in scalars and 'val/accuracy/top1_origin' in scalars
    assert not torch.equal(head, runner.model.head.fc.weight)
    assert list((tmp_path / 'run').glob('best_accuracy_top1_epoch_1.pth'))


def test_a_backbone_without_a_checkpoint_is_logged(monkeypatch):
    logged = []
    monkeypatch.setattr('mmpatchmix.models.vit.print_log', lambda *a: logged.append(a[0]))
    backbone = load('finetune', 's', 'cifar10').model.backbone
    backbone.arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    MODELS.build(backbone).init_weights()
    assert logged == [
        'The backbone starts from random weights: model.backbone.init_cfg.checkpoint is not set.'
    ]
