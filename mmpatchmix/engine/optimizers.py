"""The optimizer wrapper for bfloat16, and constructors of parameter groups by kind or depth."""

from contextlib import contextmanager
from functools import partial

import torch
from mmengine.device import get_device
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mmpatchmix.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, read_signature


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Run the forward under bfloat16 autocast, on CPUs and GPUs.

    Unlike mmengine's ``AmpOptimWrapper`` it needs no scaler and no accelerator. After the first
    gradient that is not finite a fused optimizer takes no more steps, without synchronisation with
    the host: when ``mmpatchmix.LossLogHook`` detects it, the weights are those before that step.
    ``enabled`` is True, False for float32, or ``'auto'``: if :func:`computes_bf16`.
    """

    broken: Tensor | None = None  # () bool on the device: whether it happened; None if not fused
    grad_norm: Tensor | None = None  # (), of the last step; None also if mmengine clips gradients

    def __init__(self, *args, enabled: bool | str = True, **kwargs) -> None:
        if enabled not in (True, False, 'auto'):
            raise ValueError(f"optim_wrapper.enabled={enabled!r} must be True, False or 'auto'.")
        super().__init__(*args, **kwargs)
        self.enabled = computes_bf16(get_device()) if enabled == 'auto' else enabled

    def step(self, **kwargs) -> None:
        """Take a step, unless a gradient is or was not finite."""
        if self.optimizer.defaults.get('fused'):
            parameters = (p for group in self.param_groups for p in group['params'])
            norm = get_total_norm(p.grad for p in parameters if p.grad is not None)
            if isinstance(norm, DTensor):  # of sharded weights
                norm = norm.full_tensor()
            is_broken = ~torch.isfinite(norm)
            self.broken = is_broken if self.broken is None else self.broken | is_broken
            self.optimizer.found_inf = self.broken.float()
            self.grad_norm = None if self.clip_grad_kwargs else norm
        super().step(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Run the forward under autocast."""
        device_type = get_device().split(':')[0]
        autocast = torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.enabled)
        with super().optim_context(model), autocast:
            yield


def computes_bf16(device: str) -> bool:
    """Return whether a device computes in bfloat16 in hardware (Ampere; AVX512-BF16 or AMX)."""
    kind = device.split(':')[0]
    if kind == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, 'get_capabilities'):  # torch before 2.9
        return kind == 'cpu' and torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities() if kind == 'cpu' else {}
    return any(capabilities.get(name, False) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))


def complete_optimizer(optimizer: dict) -> dict:
    """Return an optimizer's config with the ``lr`` and ``weight_decay`` of its signature."""
    parameters = read_signature(OPTIMIZERS, optimizer['type'])
    defaults = {key: parameters[key].default for key in ('lr', 'weight_decay') if key in parameters}
    known = {key: value for key, value in defaults.items() if isinstance(value, int | float)}
    return known | dict(optimizer)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DecayGroupsConstructor(DefaultOptimWrapperConstructor):
    """Make two groups of parameters: weights decay, biases and other 1-D parameters do not.

    mmengine's constructor makes one group per parameter: a multi-tensor optimizer is then called
    for one tensor at a time (ViT-S: 160 calls instead of 2). ``paramwise_cfg`` has one key,
    ``flat_decay_mult``, the factor of the weight decay of 1-D parameters, 0 by default.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = {'flat_decay_mult': 0.0} | (paramwise_cfg or {})
        if unknown := set(paramwise_cfg) - {'flat_decay_mult'}:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg has {sorted(unknown)}, but DecayGroupsConstructor '
                "supports only 'flat_decay_mult': remove optim_wrapper.constructor for others."
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.base_wd = complete_optimizer(self.optimizer_cfg).get('weight_decay', 0.0)

    def add_params(self, params: list, module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the two groups; see mmengine's base class."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        flat_decay = self.base_wd * self.paramwise_cfg['flat_decay_mult']
        params += [
            {'params': [p for p in trained if p.ndim > 1], 'weight_decay': self.base_wd},
            {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': flat_decay},
        ]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer-wise learning rate decay, for any model with a ViT as ``backbone``.

    Arguments are those of mmpretrain's constructor. With L blocks and rate r, embeddings learn at
    r^(L+1) of the learning rate, block i (from 0) at r^(L-i), everything after the backbone at 1,
    as in BEiT (https://arxiv.org/abs/2106.08254) and ViTDet (https://arxiv.org/abs/2203.16527).
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        optimizer = complete_optimizer(optim_wrapper_cfg['optimizer'])
        super().__init__({**optim_wrapper_cfg, 'optimizer': optimizer}, paramwise_cfg)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the groups of ``module``, whose backbone must have ``get_layer_depth``."""
        if prefix:  # a child of the model, in the recursion of the base class
            super().add_params(params, module, prefix, **kwargs)
            return
        depth = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if depth is None:
            raise ValueError(
                f'the backbone of {type(module).__name__} has no get_layer_depth(), which layer-'
                'wise learning rates need: use a ViT, or remove optim_wrapper.constructor.'
            )
        single: list[dict] = []
        super().add_params(single, module, get_layer_depth=partial(depth, prefix='backbone.'))
        merged: dict[tuple, dict] = {}
        for group in single:
            parameters, name, _ = (group.pop(key) for key in ('params', 'param_name', 'layer_id'))
            key = tuple(sorted(group.items()))
            same = merged.setdefault(key, {'params': [], 'param_names': []} | group)
            same['params'] += parameters
            same['param_names'].append(name)
        params.extend(merged.values())
