"""Hooks and optimizer parts: what stops a run, what is refused, what decays."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from mmpatchmix.engine import MomentumScheduleHook
from mmpatchmix.engine.bf16_optim_wrapper import computes_bf16
from tests.engine.tiny_run import tiny_run_config
from tests.models.tiny import tiny_model, uint8_batch


class Poison(Hook):
    """Make the weights NaN in the middle of a run."""

    def __init__(self, iteration, value):
        self.iteration, self.value = iteration, value

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            runner.model.neck.fc0.weight.data.fill_(self.value)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, value):
    runner = Runner.from_cfg(tiny_run_config(tmp_path, epochs=3))
    runner.register_hook(Poison(9, value))  # the fourth iteration of the second epoch
    with pytest.raises(FloatingPointError, match='iteration 10 of epoch 2') as stop:
        runner.train()
    assert runner.iter == 9  # not one more
    message = str(stop.value)
    assert re.search(r'loss_source=(nan|inf)', message) and 'loss_mix_mix=' in message
    checkpoint = re.search(r'the last good checkpoint is (\S+\.pth)', message).group(1)
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    assert all(torch.isfinite(value.float()).all() for value in weights.values())
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == [
        'epoch_1.pth',
        'failed_iter_10.pth',  # for mmpatchmix replay
    ]


def test_without_a_checkpoint_it_says_so(tmp_path):
    runner = Runner.from_cfg(tiny_run_config(tmp_path, epochs=1))
    runner.register_hook(Poison(0, float('nan')))
    with pytest.raises(FloatingPointError, match='no checkpoint had been written'):
        runner.train()


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(tmp_path):
    runner = Runner.from_cfg(tiny_run_config(tmp_path, epochs=1))
    state = dict(runner.model.state_dict())
    before = {name: value.clone() for name, value in state.items()}
    state['backbone.cls_token'] = torch.zeros(1, 1, 99)
    state['backbone.extra'] = torch.zeros(3)
    del state['neck.fc0.weight']
    torch.save({'state_dict': state}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='The checkpoint does not fit the model') as refusal:
        runner.load_checkpoint(str(tmp_path / 'other.pth'))
    for part in (
        'missing: neck.fc0.weight',
        'unexpected: backbone.extra',
        'wrong shape: backbone.cls_token: (1, 1, 99) instead of (1, 1, 12)',
    ):
        assert part in str(refusal.value)
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_with_ddp_prefixes_fits(tmp_path):
    runner = Runner.from_cfg(tiny_run_config(tmp_path, epochs=1))
    state = {f'module.{name}': value + 1 for name, value in runner.model.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'ddp.pth')
    runner.load_checkpoint(str(tmp_path / 'ddp.pth'))
    assert torch.equal(runner.model.backbone.cls_token, state['module.backbone.cls_token'])


def test_weights_decay_but_neither_biases_nor_other_1d_parameters():
    model = tiny_model()
    cfg = ConfigDict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04),
        constructor='mmpatchmix.DecayGroupsConstructor',
    )
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert len(groups) == 2
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(decay) == len(trained)
    for name, parameter in trained.items():
        exempt = name.endswith('bias') or parameter.ndim == 1
        assert decay[id(parameter)] == (0.0 if exempt else 0.04), name
    cfg.paramwise_cfg = dict(norm_decay_mult=0.0)
    with pytest.raises(ValueError, match='norm_decay_mult'):
        build_optim_wrapper(model, cfg)


def test_bf16_runs_the_backbone_in_bfloat16_on_a_cpu():
    model = tiny_model().train()
    cfg = ConfigDict(type='mmpatchmix.BF16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    wrapper = build_optim_wrapper(model, cfg)
    seen = []
    model.backbone.layers[0].attn.qkv.register_forward_hook(lambda *args: seen.append(args[-1]))
    before = model.neck.fc0.weight.clone()
    losses = model.train_step(uint8_batch(), wrapper)
    assert {output.dtype for output in seen} == {torch.bfloat16}
    assert losses['loss'].dtype == torch.float32
    assert model.neck.fc0.weight.dtype == torch.float32
    assert not torch.equal(model.neck.fc0.weight, before)


@pytest.mark.parametrize(
    ('capabilities', 'dtype'), [({'avx512_bf16': True}, torch.bfloat16), ({}, torch.float32)]
)
def test_auto_is_bfloat16_where_the_device_computes_in_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    model = tiny_model().train()
    cfg = ConfigDict(
        type='mmpatchmix.BF16OptimWrapper', enabled='auto', optimizer=dict(type='AdamW', lr=1e-3)
    )
    wrapper = build_optim_wrapper(model, cfg)
    seen = []
    model.backbone.layers[0].attn.qkv.register_forward_hook(lambda *args: seen.append(args[-1]))
    model.train_step(uint8_batch(), wrapper)
    assert {output.dtype for output in seen} == {dtype}
    with pytest.raises(ValueError, match="enabled='yes'"):
        build_optim_wrapper(model, ConfigDict(cfg, enabled='yes'))


@pytest.mark.parametrize(('native', 'expected'), [(True, True), (False, False)])
def test_a_gpu_that_would_emulate_bfloat16_does_not_count(monkeypatch, native, expected):
    def is_bf16_supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', is_bf16_supported)
    assert computes_bf16('cuda:1') is expected
    assert computes_bf16('mps') is False


@pytest.mark.parametrize('arguments', [{'momentum': 1.5}, {'end_momentum': -0.1}])
def test_shares_outside_0_to_1_are_refused(arguments):
    with pytest.raises(ValueError, match='share kept'):
        MomentumScheduleHook(**arguments)


def test_a_model_without_momentum_encoder_is_left_alone(tmp_path):
    cfg = tiny_run_config(tmp_path, epochs=1)
    cfg.model.momentum_encoder = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert 'train/momentum' not in runner.message_hub.log_scalars
    assert Path(tmp_path / 'epoch_1.pth').is_file()
