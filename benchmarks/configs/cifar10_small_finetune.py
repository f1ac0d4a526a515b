# Fine-tuning of `cifar10_small.py`: the recipe of CIFAR-10 on every tenth image, 5 epochs.
_base_ = '../../configs/finetune/vit-t_cifar10.py'

width = 96
model = dict(
    data_preprocessor=dict(to_rgb=True),  # files, so BGR
    backbone=dict(
        arch=dict(embed_dims=width, num_layers=4, num_heads=3, feedforward_channels=4 * width),
        patch_size=4,
    ),
    head=dict(in_channels=width),
)
load = dict(type='LoadImageFromFile')
folder = dict(_delete_=True, type='mmpatchmix.ImageFolder', data_root='data/cifar10', labels=True)
train = dict(folder, data_prefix='train', indices=list(range(0, 50000, 10)))
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(train, pipeline=[load, *_base_.train_pipeline]),
)
val_dataloader = dict(
    num_workers=0,
    dataset=dict(
        folder, data_prefix='test', pipeline=[load, *_base_.test_pipeline], test_mode=True
    ),
)
test_dataloader = val_dataloader
# base lr 1e-3 per 256 images: 1e-3 * 64 / 256 = 2.5e-4
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
_base_.param_scheduler[0].end = 1
_base_.param_scheduler[1].update(begin=1, end=5)
train_cfg = dict(max_epochs=5, val_interval=5)
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
# 0.99996 would average over 25,000 iterations; these are 390.
custom_hooks = [dict(type='EMAHook', momentum=0.01, priority='ABOVE_NORMAL', evaluate_on_ema=True)]
