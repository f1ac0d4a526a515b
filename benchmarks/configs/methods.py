# The setting in which benchmarks/methods.py compares objectives: a narrow ViT with 4x4 patches on
# 40,960 photographs of CIFAR-10, 1,280 steps of 256 images. Another row changes only what its
# name says. The script fills in the images; alone this config is no run.
_base_ = '../../configs/patchmix_vit-s_cifar10.py'

model = dict(
    data_preprocessor=dict(patch_size=4),
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        patch_size=4,
        drop_path_rate=0.0,  # the network is small and the run short
    ),
    neck=dict(in_channels=96, hid_channels=512, out_channels=128),
    head=dict(predictor=dict(in_channels=128, hid_channels=512, out_channels=128)),
)
train_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(
        pipeline=[
            dict(type='mmpatchmix.MultiCrop', global_size=32, global_scale=(0.2, 1.0)),
            dict(type='mmpatchmix.PackViews'),
        ]
    ),
)
val_dataloader = test_dataloader = dict(num_workers=0, pin_memory=False)
val_cfg = test_cfg = dict(bank_dataloader=dict(num_workers=0, pin_memory=False))
val_evaluator = test_evaluator = dict(num_neighbors=(20, 200))

# 8 epochs of 160 iterations, one of them warm-up
optim_wrapper = dict(optimizer=dict(lr=2e-3))
_base_.param_scheduler[0].end = 1
_base_.param_scheduler[1].update(begin=1, end=8)
_base_.param_scheduler[2].end = 8
train_cfg = dict(max_epochs=8, val_interval=1)
auto_scale_lr = dict(base_batch_size=256)
randomness = dict(seed=0)
default_hooks = dict(
    momentum=dict(momentum=0.99),  # 0.996 would remember 250 of 1,280 iterations
    checkpoint=dict(interval=8, save_optimizer=False, save_param_scheduler=False),
    logger=dict(interval=40),
)
