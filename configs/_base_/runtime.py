# Shared by all configs, from pre-training to detection. `default_hooks` merge by name, so a
# config that adds or changes a hook keeps the others.

# Imported before mmengine resolves types; makes the stack run on current torch in any Runner.
custom_imports = dict(imports=['mmpatchmix.registry'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    # Losses stay on the device until they are logged; NaN stops the run.
    runtime_info=dict(type='mmpatchmix.LossLogHook'),
    logger=dict(type='mmpatchmix.SafeLoggerHook', interval=50),
    # Written atomically, every 10 epochs and every 15 minutes.
    checkpoint=dict(
        type='mmpatchmix.SafeCheckpointHook', interval=10, minutes=15, max_keep_ckpts=3
    ),
    # A resumed run equals an uninterrupted one.
    exact_resume=dict(type='mmpatchmix.ExactResumeHook'),
    strict_load=dict(type='mmpatchmix.StrictLoadHook'),
    # Logs which rank delays the others.
    rank_watch=dict(type='mmpatchmix.RankWatchHook', seconds=60),
    # Health figures, and warnings.
    health=dict(type='mmpatchmix.HealthHook'),
    # Pictures, and report.html in the work dir.
    report=dict(type='mmpatchmix.RunReportHook'),
)

env_cfg = dict(
    cudnn_benchmark=True,
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds until a collective times out
)
# BatchNorm of projector and predictor is synchronised over the GPUs.
sync_bn = 'torch'
model_wrapper_cfg = dict(type='mmpatchmix.PatchMixDDP', broadcast_buffers=False)

visualizer = dict(
    type='UniversalVisualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
# The line in the log is short; scalars.json and TensorBoard have all figures.
log_processor = dict(type='mmpatchmix.ShortLogProcessor', window_size=50)
load_from = None
resume = False
# Each rank has its own augmentation seed.
randomness = dict(seed=None, diff_rank_seed=True)
