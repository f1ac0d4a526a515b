"""DistributedDataParallel that trains in micro-batches where the model asks for it."""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor

from mmpatchmix.models.large_batch_step import train_in_micro_batches
from mmpatchmix.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class PatchMixDDP(MMDistributedDataParallel):
    """mmengine's DDP, which has a ``train_step`` of its own and never calls the model's.

    Args:
        module: The model; one without ``micro_batch_size`` trains as in mmengine.
        **kwargs: Those of ``MMDistributedDataParallel``.
    """

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One optimizer step on a batch of the data loader."""
        if getattr(self.module, 'micro_batch_size', None) is None:
            return super().train_step(data, optim_wrapper)
        return train_in_micro_batches(self, self.module, data, optim_wrapper)
