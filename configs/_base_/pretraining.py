# Pre-training: the runtime, the momentum encoder's schedule and an online probe.
_base_ = './runtime.py'

default_hooks = dict(
    # Cosine from 0.996 to 1 over the iterations of the run.
    momentum=dict(type='mmpatchmix.MomentumScheduleHook', momentum=0.996, end_momentum=1.0),
    # Labels, if there are any, train a separate classifier and never the model.
    probe=dict(type='mmpatchmix.OnlineProbeHook'),
)
log_processor = dict(mean_pattern=r'.*(loss|time|acc|kl|similarity|grad_norm).*')
