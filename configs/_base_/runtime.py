# What every config here shares, from pre-training to detection. `default_hooks` merge by
# name, so a config that adds or changes a hook does not lose the others.

# Before mmengine looks for any type: this makes the stack run on today's torch, whoever
# builds the Runner.
custom_imports = dict(imports=['mmpatchmix.registry'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    # Losses stay on the device until they are logged; one that is no number stops the run.
    runtime_info=dict(type='mmpatchmix.DeferredRuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='mmpatchmix.SafeLoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Whole or not there; besides every 10 epochs also every 15 minutes.
    checkpoint=dict(
        type='mmpatchmix.SafeCheckpointHook', interval=10, minutes=15, max_keep_ckpts=3
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # A resumed run equals one that was never interrupted.
    exact_resume=dict(type='mmpatchmix.ExactResumeHook'),
    strict_load=dict(type='mmpatchmix.StrictLoadHook'),
    # Among several ranks, says for whom the others wait.
    rank_watch=dict(type='mmpatchmix.RankWatchHook', seconds=60),
    # Figures that tell how a run is, and words when it is not well.
    health=dict(type='mmpatchmix.HealthHook'),
    # Pictures, and report.html in the work dir.
    report=dict(type='mmpatchmix.RunReportHook'),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds that ranks wait for one of them
)
# Across GPUs, BatchNorm (of projector and predictor) sees the images of all ranks.
sync_bn = 'torch'
model_wrapper_cfg = dict(type='mmpatchmix.PatchMixDDP', broadcast_buffers=False)

visualizer = dict(
    type='UniversalVisualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
# The line in the log is short; scalars.json and TensorBoard have all figures.
log_processor = dict(type='mmpatchmix.ShortLogProcessor', window_size=50)
log_level = 'INFO'
load_from = None
resume = False
# Every rank draws its own augmentations.
randomness = dict(seed=None, diff_rank_seed=True)
