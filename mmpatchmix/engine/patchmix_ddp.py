"""DistributedDataParallel that also runs on CPUs and trains in micro-batches."""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmpatchmix.models.large_batch_step import train_in_micro_batches
from mmpatchmix.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class PatchMixDDP(MMDistributedDataParallel):
    """mmengine's DDP with two additions.

    - A model on CPUs takes no ``device_ids``, which mmengine's Runner always passes, and no
      ``SyncBatchNorm``, which torch has for GPUs only: each rank normalises by itself.
    - A model with ``micro_batch_size`` trains in micro-batches. mmengine's DDP has a
      ``train_step`` of its own and never calls the model's.

    Args:
        module: The model; one without ``micro_batch_size`` trains as in mmengine.
        device_ids: Index of this rank's GPU, in a list; without effect on CPUs.
        **kwargs: Those of ``MMDistributedDataParallel``.
    """

    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None, **kwargs: Any
    ) -> None:
        if is_on_cpus(module):
            device_ids = None
        module = without_sync_batchnorm_on_cpus(module)
        super().__init__(module=module, device_ids=device_ids, **kwargs)

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Take one optimizer step on a batch of the data loader."""
        if getattr(self.module, 'micro_batch_size', None) is None:
            return super().train_step(data, optim_wrapper)
        return train_in_micro_batches(self, self.module, data, optim_wrapper)


def is_on_cpus(module: nn.Module) -> bool:
    """Tell whether all parameters of a model are on CPUs."""
    return all(parameter.device.type == 'cpu' for parameter in module.parameters())


def without_sync_batchnorm_on_cpus(module: nn.Module) -> nn.Module:
    """Return a model on CPUs with plain BatchNorm, and say so; any other as it is."""
    synchronised = any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())
    if not synchronised or not is_on_cpus(module):
        return module
    print_log(
        'SyncBatchNorm needs GPUs: on CPUs each process normalises by itself.',
        logger='current',
        level=logging.WARNING,
    )
    return revert_sync_batchnorm(module)
