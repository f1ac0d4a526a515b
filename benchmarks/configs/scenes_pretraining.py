# Pre-training on unlabelled crops of digit scenes, for benchmarks/detection.py, which makes them:
# 64x64 pixels with a digit or two, of scenes whose annotations nobody reads.
#
#   python benchmarks/detection.py
_base_ = '../../configs/patchmix_vit-digits.py'

model = dict(backbone=dict(img_size=48))
crops = dict(type='mmpatchmix.MultiCrop', global_size=48, global_scale=(0.4, 1.0))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmpatchmix.ImageFolder',
        data_root='work_dirs/detection/crops',
        labels=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            crops,
            dict(type='mmpatchmix.PackViews'),
        ],
    )
)
# Nothing here has labels that could judge.
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
del crops

# 10 epochs of 62 iterations, one of them warm-up
_base_.param_scheduler[0].end = 1
_base_.param_scheduler[1].update(begin=1, end=10)
train_cfg = dict(max_epochs=10, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=10), report=dict(evaluate_untrained=False))
