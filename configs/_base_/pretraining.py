# What pre-training adds to the runtime: the momentum encoder's schedule.
_base_ = './runtime.py'

default_hooks = dict(
    # The momentum encoder keeps 0.996 of itself at first and all of itself at the end.
    momentum=dict(type='mmpatchmix.MomentumScheduleHook', momentum=0.996, end_momentum=1.0),
)
log_processor = dict(mean_pattern=r'.*(loss|time|acc|kl).*')
