"""Learning rate, weight decay and momentum at every iteration against their closed forms."""

import math

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.cli.arguments import set_epochs
from mmpatchmix.engine import cosine_momentum
from mmpatchmix.engine.schedules import describe_plan
from tests.engine.tiny_run import tiny_run_config

EPOCHS, PER_EPOCH = 4, 6
ITERS = EPOCHS * PER_EPOCH
WARMUP = 6  # iterations
LR, END_LR = 2e-3, 1e-6
DECAY, END_DECAY = 0.04, 0.4


class Recorder(Hook):
    """Values in force at each iteration, read just before the optimizer steps."""

    priority = 'LOWEST'

    def __init__(self):
        self.rows = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        decayed, flat = runner.optim_wrapper.optimizer.param_groups
        self.rows[runner.iter] = {
            'lr': decayed['lr'],
            'flat_lr': flat['lr'],
            'weight_decay': decayed['weight_decay'],
            'flat_decay': flat['weight_decay'],
            'momentum': runner.message_hub.get_scalar('train/momentum').current(),
            'updates': runner.model.momentum_encoder.num_updates,
        }


def run(work_dir, **options):
    cfg = tiny_run_config(work_dir, epochs=EPOCHS, **options)
    # The schedules of the ImageNet recipe over 4 epochs, one of them warm-up.
    recipe = Config.fromfile('configs/_base_/schedules/adamw_in1k_300e.py')
    warmup, cosine, decay = cfg.param_scheduler = recipe.param_scheduler
    warmup.end = cosine.begin = WARMUP / PER_EPOCH
    cosine.end = decay.end = EPOCHS
    cfg.optim_wrapper.update(recipe.optim_wrapper)
    cfg.default_hooks.momentum.momentum = 0.996
    recorder = Recorder()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    runner.train()
    return recorder.rows


def closed_form(i):
    if i < WARMUP:
        lr = LR * i / (WARMUP - 1)
    else:
        progress = (i - WARMUP) / (ITERS - WARMUP)
        lr = END_LR + (LR - END_LR) * (1 + math.cos(math.pi * progress)) / 2
    cosine = (1 + math.cos(math.pi * i / ITERS)) / 2
    return {
        'lr': lr,
        'flat_lr': lr,
        'weight_decay': END_DECAY + (DECAY - END_DECAY) * cosine,
        'flat_decay': 0.0,
        'momentum': 1 - (1 - 0.996) * cosine,
        'updates': i + 1,
    }


def test_every_iteration_follows_the_closed_forms(tmp_path):
    rows = run(tmp_path)
    assert sorted(rows) == list(range(ITERS))
    for i, row in rows.items():
        assert row == pytest.approx(closed_form(i), rel=1e-9, abs=1e-12), i


def test_with_accumulation_the_momentum_counts_optimizer_steps(tmp_path):
    rows = run(tmp_path, **{'optim_wrapper.accumulative_counts': 3})
    steps = ITERS // 3
    for i, row in rows.items():
        assert row['updates'] == i // 3 + 1
        assert row['momentum'] == pytest.approx(cosine_momentum(i // 3, steps))


def test_one_schedule_without_a_list_is_that_of_a_list(tmp_path):
    schedule = dict(type='CosineAnnealingLR', T_max=2, end=2)
    plans = []
    for given in (schedule, [schedule]):
        cfg = tiny_run_config(tmp_path, epochs=2)
        cfg.param_scheduler = given
        runner = Runner.from_cfg(cfg)
        runner.train()
        plans.append(describe_plan(runner)['schedules'])
    assert plans[0] == plans[1] == 'T_max 2, end 2, type CosineAnnealingLR'


@pytest.mark.parametrize('epochs', [1, 600])
def test_set_epochs_scales_all_schedules(epochs):
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    scale = epochs / cfg.train_cfg.max_epochs
    before = [(s.begin * scale, s.end * scale) for s in cfg.param_scheduler]
    set_epochs(cfg, epochs)
    assert cfg.train_cfg.max_epochs == epochs == max(s.end for s in cfg.param_scheduler)
    for scheduler, (begin, end) in zip(cfg.param_scheduler, before, strict=True):
        assert (scheduler.begin, scheduler.end) == pytest.approx((begin, end), abs=1e-6)
    with pytest.raises(ValueError, match='at least one epoch'):
        set_epochs(cfg, 0)
    cfg = Config.fromfile('configs/coco/mask-rcnn_vit-s_fpn_1x.py')
    warmup, steps = cfg.param_scheduler
    assert (cfg.train_cfg.max_epochs, steps.milestones, warmup.end) == (12, [8, 11], 500)
    set_epochs(cfg, 12 * epochs)
    assert (steps.end, steps.milestones) == (12 * epochs, [8 * epochs, 11 * epochs])
    assert warmup.end == 500  # counted in iterations
