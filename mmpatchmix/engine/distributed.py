"""Model wrappers for several ranks: DDP, also on CPUs and in micro-batches, and FSDP."""

import logging
from typing import Any

import torch
from mmengine import dist
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from mmpatchmix.models import PatchMix
from mmpatchmix.models.micro_batches import train_in_micro_batches
from mmpatchmix.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class PatchMixDDP(MMDistributedDataParallel):
    """mmengine's DDP, which also runs on CPUs and trains in micro-batches.

    On CPUs ``SyncBatchNorm``, which torch has for GPUs only, becomes BatchNorm per rank. A model
    without ``micro_batch_size`` trains as in mmengine. ``device_ids``, which its Runner passes, has
    no effect: targets stay on the host, since the loss would wait for a copy from the device.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None, **kwargs) -> None:
        super().__init__(without_sync_batchnorm_on_cpus(module), **kwargs)
        # DDP would change its buckets after the first step, and with them the order of sums over
        # three or more ranks, so that a resumed run would differ from an uninterrupted one. With
        # find_unused_parameters it never does.
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list, list]:
        # The order of the buckets: about that of the backward pass.
        order = slice(None, None, 1 if self.find_unused_parameters else -1)
        return tuple(each[order] for each in super()._build_params_for_reducer())

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Take one optimizer step on a batch of the data loader."""
        if getattr(self.module, 'micro_batch_size', None) is None:
            return super().train_step(data, optim_wrapper)
        return train_in_micro_batches(self, self.module, data, optim_wrapper)


def without_sync_batchnorm_on_cpus(module: nn.Module) -> nn.Module:
    """Replace SyncBatchNorm of a model on CPUs by BatchNorm, with a warning."""
    synchronised = any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())
    is_on_cpus = all(parameter.device.type == 'cpu' for parameter in module.parameters())
    if not synchronised or not is_on_cpus:
        return module
    message = 'SyncBatchNorm needs GPUs: on CPUs each process normalises by itself.'
    print_log(message, logger='current', level=logging.WARNING)
    return revert_sync_batchnorm(module)


@MODEL_WRAPPERS.register_module()
class PatchMixFSDP(nn.Module):
    """Shard weights, gradients and AdamW moments of a PatchMix among the ranks.

    Blocks, projector and predictor are gathered for their forward and backward, in float32. Losses
    and steps equal those of DDP up to the order of sums. The first ``train_step`` shards; until
    then checkpoints are loaded as without this wrapper. ``SafeCheckpointHook`` saves full ones.

    ``ranks_per_copy``, a divisor of the number of ranks and by default that number, share one copy
    of the weights; copies exchange gradients only.
    """

    def __init__(self, module: nn.Module, ranks_per_copy: int | None = None) -> None:
        super().__init__()
        if not isinstance(module, PatchMix) or module.compile_options is not None:
            advice = 'set model.compile=False, or another model_wrapper_cfg'
            raise ValueError(f'PatchMixFSDP trains a PatchMix that is not compiled: {advice}.')
        num_ranks = dist.get_world_size()
        ranks_per_copy = num_ranks if ranks_per_copy is None else ranks_per_copy
        if ranks_per_copy < 1 or num_ranks % ranks_per_copy:
            key = f'model_wrapper_cfg.ranks_per_copy={ranks_per_copy}'
            raise ValueError(f'{key} must divide the number of ranks, {num_ranks}.')
        self.module = without_sync_batchnorm_on_cpus(module)
        self.val_step, self.test_step = module.val_step, module.test_step
        self.ranks_per_copy = ranks_per_copy
        self.is_sharded = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.module(*args, **kwargs)

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Take one optimizer step on a batch of the data loader."""
        if not self.is_sharded:
            self.shard(optim_wrapper.optimizer)
        return self.module.train_step(data, optim_wrapper)

    def shard(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep on each rank its shards of the state of rank 0; called on all ranks, once."""
        for value in self.module.state_dict().values():
            dist.broadcast(value)
        options, state = StateDictOptions(full_state_dict=True), None
        if optimizer.state:  # resumed
            state = get_optimizer_state_dict(self.module, optimizer, options=options)
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        shard_model(self.module, self.ranks_per_copy)
        shards = dict(self.module.named_parameters())
        for group in optimizer.param_groups:
            group['params'] = [shards[names[parameter]] for parameter in group['params']]
        optimizer.state.clear()
        if state is not None:
            set_optimizer_state_dict(self.module, optimizer, state, options=options)
        self.is_sharded = True

    def gather_state(self, optim_wrapper: OptimWrapper) -> dict[str, dict]:
        """Gather ``state_dict`` and ``optimizer`` of a checkpoint on the CPU of rank 0.

        Called on all ranks; the result is empty on other ranks, and before the first step.
        """
        if not self.is_sharded:
            return {}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.module, options=options)
        named = get_optimizer_state_dict(self.module, optim_wrapper.optimizer, options=options)
        if not dist.is_main_process():
            return {}
        # torch names the parameters; checkpoints number them.
        names = [name for group in named['param_groups'] for name in group['params']]
        states = {i: named['state'][name] for i, name in enumerate(names) if name in named['state']}
        return {'state_dict': weights, 'optimizer': optim_wrapper.state_dict() | {'state': states}}


def shard_model(model: PatchMix, ranks_per_copy: int) -> None:
    """Shard query and momentum encoder alike."""
    device, copies = next(model.parameters()).device.type, dist.get_world_size() // ranks_per_copy
    if device == 'cpu' and not hasattr(FSDPModule, 'set_force_sum_reduction_for_comms'):
        raise ValueError(f'FSDP on CPUs needs a later torch than {torch.__version__}: use DDP.')
    shape = (ranks_per_copy,) if copies == 1 else (copies, ranks_per_copy)
    mesh = init_device_mesh(device, shape, mesh_dim_names=('copy', 'shard')[-len(shape) :])
    # Resharded after each forward: the momentum update works on shards.
    settings = {'mesh': mesh, 'reshard_after_forward': True}
    encoders = [model] if model.momentum_encoder is None else [model, model.momentum_encoder]
    for encoder in encoders:
        for block in getattr(encoder.backbone, 'layers', None) or encoder.backbone.model.blocks:
            fully_shard(block, **settings)
        # FSDP warns of outputs that are views: an in-place operation would remove its hook.
        encoder.backbone.register_forward_hook(lambda *args: tuple(x.clone() for x in args[-1]))
        fully_shard(encoder.backbone, **settings)
        fully_shard(encoder.neck, **settings)
    fully_shard(model.head.predictor, **settings)
    if device == 'cpu':  # gloo has no mean
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
