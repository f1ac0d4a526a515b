"""A step that failed can be repeated from one file."""

import re

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.engine.bf16_optim_wrapper import BF16OptimWrapper
from mmpatchmix.engine.exact_order import read_random_states
from mmpatchmix.engine.loss_log_hook import write_capsule
from tests.engine.tiny_run import tiny_run_config

ITERATION = 8  # the third of the second epoch


def build(work_dir, **options):
    cfg = tiny_run_config(work_dir, epochs=2, **options)
    cfg.train_cfg.val_interval = 9
    cfg.val_cfg.update(pixel_baseline=False, more_queries=None)
    cfg.model.backbone.drop_path_rate = 0.3
    return Runner.from_cfg(cfg)


class Poison(Hook):
    """Make one weight of the query encoder infinite for the forward of one iteration."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == ITERATION:
            model = runner.model
            self.before = {name: value.clone() for name, value in model.state_dict().items()}
            model.neck.fc0.register_forward_hook(lambda *args: args[-1] * float('inf'))


def test_the_file_of_a_failed_step_holds_what_was_before_it(tmp_path):
    runner, poison = build(tmp_path), Poison()
    runner.register_hook(poison)
    with pytest.raises(FloatingPointError, match='mmpatchmix replay') as stop:
        runner.train()
    path = re.search(r'mmpatchmix replay (\S+)"', str(stop.value)).group(1)
    assert path == str(tmp_path / f'failed_iter_{ITERATION + 1}.pth')
    capsule = replay.read_capsule(path)
    trained = dict(runner.model.named_parameters())
    assert len(trained) > 20
    for name in trained:
        assert torch.equal(capsule['state_dict'][name], poison.before[name]), name


class Healthy(Hook):
    """Write the file of a step that goes well, and keep what it gives."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == ITERATION:
            self.path = write_capsule(runner, ITERATION, read_random_states(), {'loss': 0.0})
            self.inputs = {n: v.clone() for n, v in data_batch['inputs'].items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == ITERATION:
            self.losses = {name: value.clone() for name, value in outputs.items()}


def step_with(gradients, is_guarded):
    """Step an AdamW of one weight on each of the gradients."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    wrapper = BF16OptimWrapper(optimizer) if is_guarded else optimizer
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        wrapper.step()
    return weight.detach(), optimizer.state[weight], wrapper


def test_from_a_gradient_that_is_no_number_on_nothing_moves():
    good = [[0.3, -0.1], [0.2, 0.5]]
    plain, plain_state, _ = step_with(good, is_guarded=False)
    guarded, state, wrapper = step_with(good, is_guarded=True)
    assert torch.equal(guarded, plain) and not wrapper.broken
    for bad in (float('nan'), float('inf')):
        stopped, state, wrapper = step_with([*good, [bad, 1.0], [0.1, 0.1]], is_guarded=True)
        assert wrapper.broken and torch.equal(stopped, plain)
        for name in ('step', 'exp_avg', 'exp_avg_sq'):
            assert torch.equal(state[name], plain_state[name]), name
