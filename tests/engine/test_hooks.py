"""Strict loading, weight decay groups and bfloat16."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from tests.engine.tiny_run import tiny_run_config
from tests.models.tiny import tiny_model, uint8_batch


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(tmp_path):
    runner = Runner.from_cfg(tiny_run_config(tmp_path, epochs=1))
    state = dict(runner.model.state_dict())
    before = {name: value.clone() for name, value in state.items()}
    state['backbone.cls_token'] = torch.zeros(1, 1, 99)
    state['backbone.extra'] = torch.zeros(3)
    del state['neck.fc0.weight']
    torch.save({'state_dict': state}, tmp_path / 'other.pth')
    shapes = r'backbone.cls_token: \(1, 1, 99\) instead of \(1, 1, 12\)'
    message = f'(?s)missing: neck.fc0.weight.*unexpected: backbone.extra.*wrong shape: {shapes}'
    with pytest.raises(ValueError, match=message):
        runner.load_checkpoint(str(tmp_path / 'other.pth'))
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name])
    state = {f'module.{name}': value + 1 for name, value in before.items()}  # as DDP names them
    torch.save({'state_dict': state}, tmp_path / 'ddp.pth')
    runner.load_checkpoint(str(tmp_path / 'ddp.pth'))
    assert torch.equal(runner.model.backbone.cls_token, before['backbone.cls_token'] + 1)


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


@pytest.mark.parametrize(
    ('enabled', 'capabilities', 'dtype'),
    [
        (True, {}, torch.bfloat16),
        ('auto', {'avx512_bf16': True}, torch.bfloat16),
        ('auto', {}, torch.float32),
    ],
)
def test_the_backbone_runs_in_bfloat16(monkeypatch, enabled, capabilities, dtype):
    """With 'auto', if the device computes in it. Weights and losses stay float32."""
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    model = tiny_model().train()
    cfg = ConfigDict(
        type='mmpatchmix.BF16OptimWrapper', enabled=enabled, optimizer=dict(type='AdamW', lr=1e-3)
    )
    wrapper = build_optim_wrapper(model, cfg)
    seen = []
    model.backbone.layers[0].attn.qkv.register_forward_hook(lambda *args: seen.append(args[-1]))
    before = model.neck.fc0.weight.clone()
    losses = model.train_step(uint8_batch(), wrapper)
    assert {output.dtype for output in seen} == {dtype}
    assert losses['loss'].dtype == model.neck.fc0.weight.dtype == torch.float32
    assert not torch.equal(model.neck.fc0.weight, before)
    with pytest.raises(ValueError, match="enabled='yes'"):
        build_optim_wrapper(model, ConfigDict(cfg, enabled='yes'))
