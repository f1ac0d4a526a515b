# What pre-training adds to the runtime: the momentum encoder's schedule and a probe.
_base_ = './runtime.py'

default_hooks = dict(
    # The momentum encoder keeps 0.996 of itself at first and all of itself at the end.
    momentum=dict(type='mmpatchmix.MomentumScheduleHook', momentum=0.996, end_momentum=1.0),
    # Labels, where there are any, train a classifier of its own and never the model.
    probe=dict(type='mmpatchmix.OnlineProbeHook'),
)
log_processor = dict(mean_pattern=r'.*(loss|time|acc|kl|similarity|grad_norm).*')
