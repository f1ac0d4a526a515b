# What every pre-training run shares. `default_hooks` merge by name, so a config
# that adds or changes a hook does not lose the others.
default_scope = 'mmpretrain'

default_hooks = dict(
    # Losses stay on the device until they are logged; one that is no number stops the run.
    runtime_info=dict(type='mmpatchmix.DeferredRuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=3, save_last=True),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # The momentum encoder keeps 0.996 of itself at first and all of itself at the end.
    momentum=dict(type='mmpatchmix.MomentumScheduleHook', momentum=0.996, end_momentum=1.0),
    strict_load=dict(type='mmpatchmix.StrictLoadHook'),
    report=dict(type='mmpatchmix.RunReportHook'),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# Across GPUs, BatchNorm of projector and predictor takes the view group of all ranks.
sync_bn = 'torch'
model_wrapper_cfg = dict(type='mmpatchmix.PatchMixDDP', broadcast_buffers=False)

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

log_processor = dict(window_size=50, mean_pattern=r'.*(loss|time|acc|kl).*')
log_level = 'INFO'
load_from = None
resume = False
# Every rank draws its own augmentations and mixes.
randomness = dict(seed=None, diff_rank_seed=True)
