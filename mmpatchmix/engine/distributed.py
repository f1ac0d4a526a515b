"""DistributedDataParallel that also runs on CPUs and trains in micro-batches."""

import logging
from collections import defaultdict
from typing import Any

import torch
from mmengine import dist
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mmpatchmix.models import PatchMix
from mmpatchmix.models.micro_batches import train_in_micro_batches
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


@MODEL_WRAPPERS.register_module()
class PatchMixFSDP(nn.Module):
    """Keep on each rank a share of all weights, gradients and AdamW moments of a PatchMix.

    Blocks, projector and predictor are gathered when they run and given back afterwards. Query
    and momentum encoder are cut alike, so the momentum update needs no exchange. Losses and
    steps are those of DDP, up to the order of sums.

    The first ``train_step`` cuts. Until then every rank holds all: weights are initialised, and
    checkpoints loaded, as without this wrapper. ``SafeCheckpointHook`` saves whole checkpoints,
    which any tool and any number of ranks reads. Gradients are exchanged in every micro-batch:
    holding them back would mean holding them whole.

    Weights are gathered in float32, so that training and evaluation see the same ones. Autocast's
    bfloat16 copies stay whole until the backward, 2 bytes per parameter of what is not recomputed.

    Args:
        module: The model.
        ranks_per_copy: Ranks that hold one copy of the weights together, such as the GPUs of a
            machine; copies exchange gradients only. All ranks by default.

    Raises:
        ValueError: If the model is no PatchMix or compiled, or ``ranks_per_copy`` does not
            divide the number of ranks.
    """

    def __init__(self, module: nn.Module, ranks_per_copy: int | None = None) -> None:
        super().__init__()
        if not isinstance(module, PatchMix):
            raise ValueError(
                f'PatchMixFSDP trains a PatchMix, not a {type(module).__name__}: remove '
                'model_wrapper_cfg, or name a wrapper that fits.'
            )
        if module.compile_options is not None:
            raise ValueError(
                'model.compile and PatchMixFSDP cannot be combined, gathering weights is not '
                'compiled: set model.compile=False.'
            )
        num_ranks = dist.get_world_size()
        ranks_per_copy = num_ranks if ranks_per_copy is None else ranks_per_copy
        if ranks_per_copy < 1 or num_ranks % ranks_per_copy:
            raise ValueError(
                f'model_wrapper_cfg.ranks_per_copy={ranks_per_copy} must divide the number of '
                f'ranks, {num_ranks}.'
            )
        self.module = without_sync_batchnorm_on_cpus(module)
        self.ranks_per_copy = ranks_per_copy
        self.is_cut = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.module(*args, **kwargs)

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Take one optimizer step on a batch of the data loader."""
        if not self.is_cut:
            self.cut(optim_wrapper)
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: dict) -> Any:
        """Evaluate a batch."""
        return self.module.val_step(data)

    def test_step(self, data: dict) -> Any:
        """Test a batch."""
        return self.module.test_step(data)

    def cut(self, optim_wrapper: OptimWrapper) -> None:
        """Leave each rank its share of what rank 0 has; called on all ranks, once."""
        for value in self.module.state_dict().values():
            dist.broadcast(value)
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        cut_model(self.module, self._make_mesh())
        shares = dict(self.module.named_parameters())
        cut_optimizer(
            optim_wrapper.optimizer,
            {parameter: shares[name] for parameter, name in names.items()},
        )
        self.is_cut = True

    def _make_mesh(self) -> DeviceMesh:
        device = next(self.module.parameters()).device.type
        copies = dist.get_world_size() // self.ranks_per_copy
        if copies == 1:
            return init_device_mesh(device, (self.ranks_per_copy,))
        return init_device_mesh(
            device, (copies, self.ranks_per_copy), mesh_dim_names=('copy', 'share')
        )


def cut_model(model: PatchMix, mesh: DeviceMesh) -> None:
    """Cut query and momentum encoder along the same lines.

    Args:
        model: The model.
        mesh: Ranks that share, along the last dimension.
    """
    # Always given back after the forward: the momentum update wants shares at any time.
    settings = {'mesh': mesh, 'reshard_after_forward': True}
    encoders = [model] if model.momentum_encoder is None else [model, model.momentum_encoder]
    for encoder in encoders:
        # The last block goes with the backbone, which computes with its weights without calling it.
        for block in encoder.backbone.layers[:-1]:
            fully_shard(block, **settings)
        # Of a view FSDP warns: an operation in place would take its hook away.
        encoder.backbone.register_forward_hook(_copy_outputs)
        fully_shard(encoder.backbone, **settings)
        fully_shard(encoder.neck, **settings)
    fully_shard(model.head.predictor, **settings)
    if mesh.device_type == 'cpu':  # gloo adds up, but knows no mean
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def _copy_outputs(module: nn.Module, args: tuple, outputs: tuple[Tensor, ...]) -> tuple:
    return tuple(output.clone() for output in outputs)


def cut_optimizer(optimizer: torch.optim.Optimizer, shares: dict[Tensor, nn.Parameter]) -> None:
    """Let an optimizer go on with shares of its parameters, and of what it knows about them.

    Args:
        optimizer: Of whole parameters; a resumed one has moments of their shape.
        shares: The share that takes the place of each parameter.
    """
    for group in optimizer.param_groups:
        group['params'] = [shares[parameter] for parameter in group['params']]
    state = defaultdict(dict)
    for parameter, values in optimizer.state.items():
        share = shares[parameter]
        state[share] = {
            name: distribute_tensor(value, share.device_mesh, share.placements, src_data_rank=None)
            if torch.is_tensor(value) and value.shape == share.shape
            else value
            for name, value in values.items()
        }
    optimizer.state = state


def local_share(value: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def gather_whole(tree: Any) -> Any:
    """Replace shares in dicts and lists by whole tensors in the memory of rank 0.

    Called on all ranks, one tensor at a time; ranks other than 0 get None for each.
    """

    def gather(share: DTensor) -> Tensor | None:
        whole = share.full_tensor()
        return whole.cpu() if dist.is_main_process() else None

    return apply_to(tree, lambda value: isinstance(value, DTensor), gather)
