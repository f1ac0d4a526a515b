"""Mixed precision in bfloat16, on CPUs as well as on GPUs."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from mmpatchmix.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Run the forward under bfloat16 autocast.

    bfloat16 has the range of float32, so gradients need no scaler, and unlike
    mmengine's ``AmpOptimWrapper`` nothing here asks for an accelerator.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast around the forward; accumulation as in the base class."""
        device_type = get_device().split(':')[0]
        with super().optim_context(model), torch.autocast(device_type, dtype=torch.bfloat16):
            yield
