"""What a Runner builds: hooks, loops, optimizer wrappers and constructors, DDP and FSDP."""

from mmpatchmix.engine.bf16_optim_wrapper import BF16OptimWrapper
from mmpatchmix.engine.checkpoint_hook import SafeCheckpointHook
from mmpatchmix.engine.distributed import PatchMixDDP, PatchMixFSDP
from mmpatchmix.engine.exact_order import ExactTrainLoop
from mmpatchmix.engine.exact_resume import ExactResumeHook
from mmpatchmix.engine.loss_log_hook import DeferredRuntimeInfoHook
from mmpatchmix.engine.param_groups import DecayGroupsConstructor, LayerDecayConstructor
from mmpatchmix.engine.ranks import RankWatchHook
from mmpatchmix.engine.run_logs import SafeLoggerHook, ShortLogProcessor
from mmpatchmix.engine.schedules import LinearWarmupLR, MomentumScheduleHook, cosine_momentum
from mmpatchmix.engine.strict_load_hook import StrictLoadHook

__all__ = [
    'BF16OptimWrapper',
    'DecayGroupsConstructor',
    'DeferredRuntimeInfoHook',
    'ExactResumeHook',
    'ExactTrainLoop',
    'LayerDecayConstructor',
    'LinearWarmupLR',
    'MomentumScheduleHook',
    'PatchMixDDP',
    'PatchMixFSDP',
    'RankWatchHook',
    'SafeCheckpointHook',
    'SafeLoggerHook',
    'ShortLogProcessor',
    'StrictLoadHook',
    'cosine_momentum',
]
