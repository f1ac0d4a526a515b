"""Mixed precision in bfloat16, on CPUs as well as on GPUs."""

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

    bfloat16 has the range of float32, so gradients need no scaler, and unlike
    mmengine's ``AmpOptimWrapper`` nothing here asks for an accelerator.

    From the first gradient on that is no number, a fused optimizer takes no step: when
    ``mmpatchmix.DeferredRuntimeInfoHook`` finds out, the weights are still those of the step
    that failed. The host waits for nothing, and ranks agree, for they step on the same gradients.

    Attributes:
        broken: Whether that has happened, ``()`` bool on the device; None before the first step,
            and where the optimizer is not fused.
        grad_norm: Norm of all gradients of the last step, ``()`` on the device; None under the
            same conditions, and where mmengine clips gradients and logs the norm by itself.

    Args:
        enabled: ``True``, ``False`` for float32, or ``'auto'``: where the device computes
            in bfloat16, see :func:`computes_bf16`.
        **kwargs: Those of mmengine's ``OptimWrapper``.

    Raises:
        ValueError: If ``enabled`` is something else.
    """

    def __init__(self, *args, enabled: bool | str = True, **kwargs) -> None:
        if enabled not in (True, False, 'auto'):
            raise ValueError(
                f"optim_wrapper.enabled={enabled!r} must be True, False or 'auto' (bfloat16 where "
                'the device computes in it).'
            )
        super().__init__(*args, **kwargs)
        self.enabled = computes_bf16(get_device()) if enabled == 'auto' else enabled
        self.broken: Tensor | None = None
        self.grad_norm: Tensor | None = None

    def step(self, **kwargs) -> None:
        """Step as the base class does, unless a gradient is or was no number."""
        if self.optimizer.defaults.get('fused'):
            parameters = (p for group in self.param_groups for p in group['params'])
            norm = get_total_norm(p.grad for p in parameters if p.grad is not None)
            if isinstance(norm, DTensor):  # of weights that ranks share
                norm = norm.full_tensor()
            is_broken = ~torch.isfinite(norm)
            self.broken = is_broken if self.broken is None else self.broken | is_broken
            self.optimizer.found_inf = self.broken.float()
            self.grad_norm = None if self.clip_grad_kwargs else norm
        super().step(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Put autocast around the forward; accumulate as the base class does."""
        device_type = get_device().split(':')[0]
        autocast = torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.enabled)
        with super().optim_context(model), autocast:
            yield


def computes_bf16(device: str) -> bool:
    """Tell whether a device multiplies matrices of bfloat16 in hardware, not by emulation.

    Args:
        device: ``'cuda'`` or ``'cpu'``, an index may follow.

    Returns:
        bool: For GPUs from Ampere on and CPUs with AVX512-BF16 or AMX; False for
        other devices.
    """
    kind = device.split(':')[0]
    if kind == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != 'cpu':
        return False
    if not hasattr(torch.cpu, 'get_capabilities'):  # torch before 2.9
        return torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))
