# Two epochs of fine-tuning on scikit-learn's digits.
#
# Meant for 2 CPU cores, a few seconds.
#
#   python tools/train.py configs/finetune/vit-digits.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-digits/epoch_80.pth
_base_ = ['../_base_/datasets/digits.py', '../_base_/finetune.py']

img_size = _base_.pop('img_size')
model = dict(
    num_classes=10,
    data_preprocessor=dict(mean=_base_.pop('mean'), std=_base_.pop('std')),
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=img_size,
        patch_size=8,
        drop_path_rate=0.0,
    ),
    train_cfg=None,
)
_base_.pop('after_crop')  # 180 iterations are too short for what makes training harder
custom_hooks = []
crop = dict(type='RandomCrop', crop_size=img_size, padding=2)
train_dataloader = dict(
    batch_size=16,  # 90 iterations an epoch
    drop_last=False,
    dataset=dict(pipeline=[crop, dict(type='PackInputs')]),
)
del img_size, crop

_base_.param_scheduler.pop(0)  # no warm-up
_base_.param_scheduler[0].update(begin=0, end=2)
train_cfg = dict(max_epochs=2, val_interval=1)
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=45), checkpoint=dict(interval=1))
