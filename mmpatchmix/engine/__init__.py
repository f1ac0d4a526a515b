"""Hooks and optimizer parts that mmengine lacks, and what happens before a run."""

from mmpatchmix.engine.bf16_optim_wrapper import BF16OptimWrapper
from mmpatchmix.engine.checkpoint_match_hook import CheckpointMatchHook
from mmpatchmix.engine.decay_groups import DecayGroupsConstructor
from mmpatchmix.engine.linear_warmup import LinearWarmupLR
from mmpatchmix.engine.loss_log_hook import LossLogHook
from mmpatchmix.engine.momentum_update_hook import MomentumUpdateHook, cosine_momentum
from mmpatchmix.engine.patchmix_ddp import PatchMixDDP

__all__ = [
    'BF16OptimWrapper',
    'CheckpointMatchHook',
    'DecayGroupsConstructor',
    'LinearWarmupLR',
    'LossLogHook',
    'MomentumUpdateHook',
    'PatchMixDDP',
    'cosine_momentum',
]
