"""What a Runner builds: hooks, optimizer wrappers and constructors, DDP."""

from mmpatchmix.engine.bf16_optim_wrapper import BF16OptimWrapper
from mmpatchmix.engine.decay_groups import DecayGroupsConstructor
from mmpatchmix.engine.layer_decay import DetectorLayerDecayConstructor
from mmpatchmix.engine.linear_warmup import LinearWarmupLR
from mmpatchmix.engine.momentum_schedule_hook import MomentumScheduleHook, cosine_momentum
from mmpatchmix.engine.patchmix_ddp import PatchMixDDP
from mmpatchmix.engine.runtime_info_hook import DeferredRuntimeInfoHook
from mmpatchmix.engine.strict_load_hook import StrictLoadHook

__all__ = [
    'BF16OptimWrapper',
    'DecayGroupsConstructor',
    'DeferredRuntimeInfoHook',
    'DetectorLayerDecayConstructor',
    'LinearWarmupLR',
    'MomentumScheduleHook',
    'PatchMixDDP',
    'StrictLoadHook',
    'cosine_momentum',
]
