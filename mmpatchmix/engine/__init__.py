"""What a Runner builds: hooks, loops, optimizer wrappers and constructors, DDP and FSDP."""

from mmpatchmix.engine.bf16_optim_wrapper import BF16OptimWrapper
from mmpatchmix.engine.decay_groups import DecayGroupsConstructor
from mmpatchmix.engine.exact_resume_hook import ExactResumeHook
from mmpatchmix.engine.exact_train_loop import ExactTrainLoop
from mmpatchmix.engine.layer_decay import LayerDecayConstructor
from mmpatchmix.engine.linear_warmup import LinearWarmupLR
from mmpatchmix.engine.momentum_schedule_hook import MomentumScheduleHook, cosine_momentum
from mmpatchmix.engine.patchmix_ddp import PatchMixDDP
from mmpatchmix.engine.patchmix_fsdp import PatchMixFSDP
from mmpatchmix.engine.rank_watch_hook import RankWatchHook
from mmpatchmix.engine.runtime_info_hook import DeferredRuntimeInfoHook
from mmpatchmix.engine.safe_checkpoint_hook import SafeCheckpointHook
from mmpatchmix.engine.safe_logger_hook import SafeLoggerHook
from mmpatchmix.engine.short_log_processor import ShortLogProcessor
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
