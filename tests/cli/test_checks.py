"""Configs and runs that do not fit are refused before training, naming the key."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import LinearLR, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmpatchmix.cli.arguments import set_data_root, set_val_root
from mmpatchmix.cli.check_run import check_run
from mmpatchmix.cli.config_checks import apply_options, check_config
from mmpatchmix.cli.describe_run import describe_run, describe_schedules
from mmpatchmix.engine import schedules
from mmpatchmix.models import PatchMixViT
from mmpatchmix.models.classifier import derive_num_classes
from mmpatchmix.registry import DATASETS, MODELS
from tests.cli.parts import build_parts, get_refusal
from tests.datasets.folders import make_classes
from tests.datasets.shards import make_shards
from tests.engine.tiny_run import tiny_run_config

SMALL = dict(type='mmpatchmix.PatchMixViT', arch='deit-tiny', img_size=32)
CONFIGS = sorted(Path('configs').glob('**/*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_pass(path):
    check_config(Config.fromfile(path))


def use_local_crops(cfg):
    cfg.train_dataloader.dataset.pipeline[0] = dict(
        type='mmpatchmix.MultiCrop', global_size=32, num_local=1, local_size=20
    )
    cfg.model.data_preprocessor.patch_size = 4


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
    ({'train_dataloader.dataset.pipeline': [dict(type='PackInputs')]}, "no ['view_1', 'view_2']"),
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


def test_a_warmup_of_less_than_an_iteration_is_left_out(tmp_path, monkeypatch):
    """Of ``--epochs 1`` with 6 iterations; mmengine refuses to build it."""
    cfg, messages = tiny_run_config(tmp_path, epochs=1), []
    schedule = dict(by_epoch=True, convert_to_iter_based=True)
    rest = dict(type='CosineAnnealingLR', begin=0.15, end=1, **schedule)
    for end, num_kept in ((0.15, 1), (0.17, 2)):
        cfg.param_scheduler = [dict(type='LinearLR', begin=0, end=end, **schedule), rest]
        runner = build_parts(cfg)
        monkeypatch.setattr(schedules, 'print_log', lambda text, logger: messages.append(text))
        check_run(runner)
        assert runner.param_schedulers == cfg.param_scheduler[-num_kept:]
    (message,) = messages
    assert message == 'LinearLR from epoch 0 to 0.15 is shorter than an iteration and left out'
    optimizer = torch.optim.SGD([torch.ones(1)])
    with pytest.raises(ValueError, match='end should be larger than begin'):
        LinearLR.build_iter_from_epoch(optimizer, end=0.15, epoch_length=6)


def test_the_described_learning_rate_is_used(tmp_path):
    """A batch of 8 instead of 128: 3e-3 * 8 / 128."""
    cfg = tiny_run_config(tmp_path, epochs=1)
    rate = describe_schedules(cfg, 8)['learning rate']
    assert '0 -> 0.003 ' in rate and '--auto-scale-lr makes it 0.0001875' in rate
    cfg.auto_scale_lr.enable = True
    runner = Runner.from_cfg(cfg)
    lines, facts = describe_run(runner)
    assert '  batch         8 x 1 ranks = 8' in lines
    assert '0 -> 0.0001875 ' in facts['learning rate'] and '--auto' not in facts['learning rate']
    trained = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    assert facts['trained'] == f'{trained:,}'
    assert facts['momentum'].startswith('0.95 -> 1 (cosine')
    assert facts['length'] == '1 epochs x 6 = 6 iterations'
    again = copy.deepcopy(cfg)
    again.optim_wrapper.accumulative_counts, again.experiment_name = 16, 'test-accumulation'
    described = describe_run(Runner.from_cfg(again))[1]
    assert '0 -> 0.003 ' in described['learning rate']  # 8 x 16 images a step, as in the recipe
    runner.train()
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    rates = [json.loads(line).get('lr', 0) for line in path.read_text().splitlines()]
    assert max(rates) == pytest.approx(0.0001875, rel=0.05)


@pytest.mark.parametrize(
    ('optimizer', 'lr', 'decay'),
    [
        (dict(type='AdamW'), '0.001', 0.01),
        (dict(type='mmpretrain.Lamb', lr=1e-3, weight_decay=0.1), '0.001', 0.1),
        (dict(type='Rprop', lr=1e-2), '0.01', 0),  # has no weight decay
    ],
)
@pytest.mark.parametrize('constructor', ['DecayGroupsConstructor', 'LayerDecayConstructor'])
def test_defaults_of_an_optimizer_are_those_of_its_signature(optimizer, lr, decay, constructor):
    cfg = Config(dict(optim_wrapper=dict(optimizer=optimizer), model=dict()))
    facts = describe_schedules(cfg, 8)
    assert facts['learning rate'] == lr and float(facts['weight decay']) == decay
    vit = dict(embed_dims=12, num_layers=1, num_heads=2, feedforward_channels=24)
    model = nn.Module()
    model.backbone = PatchMixViT(vit, img_size=16, patch_size=8)
    wrapper = dict(type='OptimWrapper', constructor=f'mmpatchmix.{constructor}')
    groups = build_optim_wrapper(model, wrapper | cfg.optim_wrapper).param_groups
    assert max(group.get('weight_decay', 0) for group in groups) == decay
    assert max(group['lr'] for group in groups) == float(lr)


def test_an_optimizer_without_learning_rate_is_refused_if_schedules_need_one():
    wrapper = dict(optimizer=dict(type='Adafactor'))
    cfg = Config(dict(optim_wrapper=wrapper, model=dict(), param_scheduler=[]))
    assert describe_schedules(cfg, 8) == {'learning rate': 'set by the optimizer'}
    cfg.param_scheduler = [dict(type='CosineAnnealingLR')]
    with pytest.raises(ValueError, match=r'optimizer\.lr: Adafactor has no default; set it'):
        describe_schedules(cfg, 8)


def test_another_arch_takes_one_option():
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    apply_options(cfg, ['model.backbone.arch=deit-tiny'])
    check_config(cfg)
    cfg.model.momentum_encoder = None
    model = MODELS.build(cfg.model)
    assert model.neck.fc0.in_features == 192
    assert model.head.predictor.fc0.in_features == model.neck.fc2.out_features == 256


def test_widths_that_do_not_fit_are_refused_by_key(tmp_path):
    for key, value, message in (
        ('neck.in_channels', 13, r'model\.neck\.in_channels=13, .* need 12'),
        ('head.predictor.out_channels', 9, r'head\.predictor\.out_channels=9, .* need 8'),
    ):
        cfg = tiny_run_config(tmp_path, **{f'model.{key}': value})
        with pytest.raises(ValueError, match=message):
            MODELS.build(cfg.model)


@pytest.mark.parametrize('parts', [('train', 'val'), ('Train', 'TEST'), ('',)])
def test_the_number_of_classes_is_that_of_the_images_or_of_the_checkpoint(tmp_path, parts):
    for part in parts:
        make_classes(tmp_path / 'images' / part, 40, ('ant', 'bee', 'cow'))
    cfg = Config.fromfile('configs/finetune/vit-s_in1k.py')
    init_default_scope(cfg.default_scope)
    assert MODELS.build(dict(cfg.model, backbone=SMALL)).head.num_classes == 1000
    set_data_root(cfg, str(tmp_path / 'images'))
    evaluated, given = copy.deepcopy(cfg), copy.deepcopy(cfg)
    derive_num_classes(cfg)
    assert cfg.model.num_classes == 3
    train, val = (DATASETS.build(cfg[f'{name}_dataloader'].dataset) for name in ('train', 'val'))
    assert len(train) + len(val) == 120 * len(parts) and train.img_prefix
    torch.save({'head.fc.weight': torch.ones(5, 2)}, tmp_path / 'x.pth')
    derive_num_classes(evaluated, str(tmp_path / 'x.pth'))
    assert evaluated.model.num_classes == 5
    given.model.num_classes = 7
    derive_num_classes(given)
    assert given.model.num_classes == 7  # check_run refuses it
    shards = make_shards(tmp_path / 'shards', 6, 6)  # with labels, without their names
    cfg = Config.fromfile('configs/finetune/vit-s_in1k.py')
    cfg.train_dataloader.dataset = dict(type='mmpatchmix.ShardedImages', data_root=str(shards))
    with pytest.raises(ValueError, match=r'have no names: set model\.num_classes'):
        derive_num_classes(cfg)


def test_a_classifier_is_not_evaluated_on_training_images_either(tmp_path):
    root = make_classes(tmp_path / 'images', 20)
    cfg = Config.fromfile('configs/finetune/vit-s_in1k.py')
    cfg.model.backbone, cfg.work_dir = SMALL, str(tmp_path)
    set_data_root(cfg, str(root))
    set_val_root(cfg, str(root))
    cfg.train_cfg.max_epochs = 40
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    derive_num_classes(cfg)
    with pytest.warns(UserWarning, match=r'schedules end at epoch 100.*, the run at epoch 40'):
        assert 'images of val_dataloader are trained on too' in get_refusal(cfg)


def test_the_number_of_classes_takes_one_option_and_must_fit_the_data():
    cfg = Config.fromfile('configs/finetune/vit-digits.py')
    runner = build_parts(cfg)
    assert runner.model.head.fc.weight.shape == (10, 96)
    check_run(runner)
    apply_options(cfg, ['model.num_classes=3', 'model.backbone.arch=deit-tiny'])
    check_config(cfg)
    runner = build_parts(cfg)
    assert runner.model.head.fc.weight.shape == (3, 192)
    assert runner.model.data_preprocessor.num_classes == 3
    with pytest.raises(ValueError, match=r'num_classes=3, .* 10 classes: .*num_classes=10'):
        check_run(runner)
    (metric,) = Evaluator(cfg.val_evaluator).metrics
    sample = dict(pred_score=torch.tensor([0.1, 0.7, 0.2]), gt_label=torch.tensor([1]))
    assert metric.compute_metrics([sample]) == {'top1': 100}  # no top-5 of 3 classes
    cfg.model.head.num_classes = 7
    with pytest.raises(ValueError, match=r'model\.head\.num_classes=7, .* need 3'):
        MODELS.build(cfg.model)
