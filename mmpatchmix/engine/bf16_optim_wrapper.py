"""The optimizer wrapper for bfloat16, on CPUs and GPUs, which takes no step after NaN."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mmpatchmix.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Run the forward under bfloat16 autocast.

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
