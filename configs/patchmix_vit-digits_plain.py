# PatchMix on scikit-learn's digits without any augmentation, the demo: both views are the image
# itself, so that mixing alone makes pairs that differ.
#
# Meant for 1 CPU core, about a minute. No paper has figures for it. num_mix=1 is MoCo v3, which
# learns little from equal views; examples/demo.py trains both.
#
#   python tools/train.py configs/patchmix_vit-digits_plain.py
_base_ = './patchmix_vit-digits.py'

# -- model: a third of the cost of the base
model = dict(
    data_preprocessor=dict(num_mix=3),
    backbone=dict(arch=dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=256)),
    neck=dict(hid_channels=256),
    head=dict(predictor=dict(hid_channels=256)),
)

# -- data
side = _base_.model.backbone.img_size
whole = dict(type='mmpatchmix.MultiCrop', global_size=side, global_scale=(1.0, 1.0), ratio=(1, 1))
train_dataloader = dict(
    batch_size=64, dataset=dict(pipeline=[whole, dict(type='mmpatchmix.PackViews')])
)
del side, whole

# -- schedule: 20 epochs of 22 iterations, 2 of them warm-up
_base_.param_scheduler[0].end = 2
_base_.param_scheduler[1].update(begin=2, end=20)
train_cfg = dict(max_epochs=20, val_interval=5)
# base lr 1.2e-2 per 256 images: 1.2e-2 * 64 / 256 = 3e-3
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(logger=dict(interval=22))
log_processor = dict(window_size=22)
