"""Hooks, loops, optimizer wrappers and constructors, and model wrappers (DDP, FSDP) of a Runner."""

from mmpatchmix.engine.checkpoint_hook import SafeCheckpointHook, StrictLoadHook
from mmpatchmix.engine.distributed import PatchMixDDP, PatchMixFSDP
from mmpatchmix.engine.exact_order import ExactTrainLoop
from mmpatchmix.engine.exact_resume import ExactResumeHook
from mmpatchmix.engine.loss_log_hook import LossLogHook
from mmpatchmix.engine.optimizers import (
    BF16OptimWrapper,
    DecayGroupsConstructor,
    LayerDecayConstructor,
)
from mmpatchmix.engine.ranks import RankWatchHook
from mmpatchmix.engine.run_logs import SafeLoggerHook, ShortLogProcessor, WandbBackend
from mmpatchmix.engine.schedules import LinearWarmupLR, MomentumScheduleHook, cosine_momentum
