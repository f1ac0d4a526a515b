# Pre-training on unlabelled crops of photographs, which the script cuts.
#
#   python benchmarks/detection.py --photographs PATH
_base_ = '../../configs/patchmix_vit-digits_scenes.py'

jitter = dict(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_prob=0.8, grayscale_prob=0.2)
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        augment=dict(
            view_1=dict(type='mmpatchmix.ViewAugment', blur_prob=0.5, **jitter),
            view_2=dict(type='mmpatchmix.ViewAugment', blur_prob=0.1, solarize_prob=0.2, **jitter),
        ),
    ),
    backbone=dict(img_size=48),
)
train_dataloader = dict(
    dataset=dict(
        data_root='work_dirs/photographs/crops',
        pipeline=[
            dict(type='mmpatchmix.LoadMultiCrop', global_size=48, global_scale=(0.2, 1.0)),
            dict(type='mmpatchmix.PackViews'),
        ],
    )
)
del jitter

# 12 epochs of 34 iterations, one of them warm-up
_base_.param_scheduler[0].end = 1
_base_.param_scheduler[1].update(begin=1, end=12)
train_cfg = dict(max_epochs=12, val_interval=12)
default_hooks = dict(checkpoint=dict(interval=12))
