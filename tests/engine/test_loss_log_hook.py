"""NaN stops a run without moving weights, and the step can be re-run from one file."""

import re

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.engine import BF16OptimWrapper
from tests.docs.documents import ROOT
from tests.engine.tiny_run import tiny_run_config

ITERATION = 8  # the third of the second epoch


def build(work_dir, hook):
    cfg = tiny_run_config(work_dir, epochs=2)
    cfg.train_cfg.val_interval = 9
    cfg.model.backbone.drop_path_rate = 0.3
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook)
    return runner


class InfiniteGradient(Hook):
    """Make one gradient infinite in one iteration; store weights and losses of that step."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == ITERATION:
            parameters = runner.model.named_parameters()
            self.weights = {n: p.detach().clone() for n, p in parameters if p.requires_grad}
            runner.model.neck.fc0.weight.register_hook(lambda gradient: gradient * float('inf'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.outputs = outputs


def test_the_code_in_the_docs_repeats_a_failed_step(tmp_path):
    hook = InfiniteGradient()
    with pytest.raises(FloatingPointError, match='a gradient is not finite') as stop:
        build(tmp_path, hook).train()
    title = re.search(r'docs/troubleshooting.md, "(.*?)"', str(stop.value)).group(1)
    path = re.search(r'in (\S+failed_iter_9\.pth),', str(stop.value)).group(1)
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    section = page.split(f'\n## {title}\n')[1].split('\n## ')[0]
    found = {'path': path}
    exec(re.search(r'```python\n(.*?)```', section, re.DOTALL).group(1), found)
    assert len(hook.weights) > 20
    for name, weight in hook.weights.items():
        assert torch.equal(found['step']['state_dict'][name], weight), name
    names = {'loss_source', 'loss_mix_source', 'loss_mix_mix'}
    assert names < found['step']['losses'].keys()
    for name in names:
        assert found['losses'][name].item() == found['step']['losses'][name] == hook.outputs[name]


class NaNWeights(Hook):
    """Fill a weight with NaN before an iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == ITERATION:
            runner.model.neck.fc0.weight.data.fill_(float('nan'))


def test_a_nan_loss_stops_the_run(tmp_path):
    runner = build(tmp_path, NaNWeights())
    with pytest.raises(FloatingPointError, match='iteration 9 of epoch 2') as stop:
        runner.train()
    assert runner.iter == ITERATION
    message = str(stop.value)
    assert 'loss_source=nan' in message and 'loss_mix_mix=' in message
    checkpoint = re.search(r'the last good checkpoint is (\S+\.pth)', message).group(1)
    weights = torch.load(checkpoint, weights_only=True)['state_dict']
    assert all(torch.isfinite(value.float()).all() for value in weights.values())
    assert {path.name for path in tmp_path.glob('*.pth')} == {'epoch_1.pth', 'failed_iter_9.pth'}


def step_with(gradients, is_guarded):
    """Step an AdamW of one weight on each of the gradients."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    wrapper = BF16OptimWrapper(optimizer) if is_guarded else optimizer
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        wrapper.step()
    return weight.detach(), optimizer.state[weight], wrapper


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_no_step_is_taken_from_a_gradient_that_is_not_finite(bad):
    good = [[0.3, -0.1], [0.2, 0.5]]
    plain, plain_state, _ = step_with(good, is_guarded=False)
    stopped, state, wrapper = step_with([*good, [bad, 1.0], [0.1, 0.1]], is_guarded=True)
    assert wrapper.broken and torch.equal(stopped, plain)
    for name in ('step', 'exp_avg', 'exp_avg_sq'):
        assert torch.equal(state[name], plain_state[name]), name
