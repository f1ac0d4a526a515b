# The setting in which objectives are compared: a narrow ViT on 16,384 photographs of CIFAR-10,
# 640 steps of 128 images. A row changes only what its name says. The script fills in the images;
# alone this config is no run.
#
#   python benchmarks/methods.py
_base_ = '../../configs/patchmix_vit-s_cifar10.py'

model = dict(
    data_preprocessor=dict(patch_size=4),
    backbone=dict(
        arch=dict(embed_dims=64, num_layers=4, num_heads=2, feedforward_channels=256),
        patch_size=4,
        img_size=24,
        drop_path_rate=0.0,  # the network is small and the run short
    ),
    neck=dict(in_channels=64, hid_channels=512, out_channels=128),
    head=dict(predictor=dict(in_channels=128, hid_channels=512, out_channels=128)),
)
crops = dict(type='mmpatchmix.MultiCrop', global_size=24, global_scale=(0.2, 1.0))
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(pipeline=[crops, dict(type='mmpatchmix.PackViews')]),
)
banks = (_base_.val_cfg.bank_dataloader, _base_.test_cfg.bank_dataloader)
for loader in (_base_.val_dataloader, _base_.test_dataloader, *banks):
    loader.dataset.pipeline[0].scale = 27
    loader.dataset.pipeline[1].crop_size = 24
del loader, banks, crops
val_dataloader = test_dataloader = dict(num_workers=0, pin_memory=False)
val_cfg = test_cfg = dict(bank_dataloader=dict(num_workers=0, pin_memory=False))
val_evaluator = test_evaluator = dict(num_neighbors=(20, 200))

# 5 epochs of 128 iterations, half of one is warm-up
optim_wrapper = dict(optimizer=dict(lr=2e-3))
_base_.param_scheduler[0].update(end=0.5)
_base_.param_scheduler[1].update(begin=0.5, end=5)
_base_.param_scheduler[2].end = 5
train_cfg = dict(max_epochs=5, val_interval=1)
auto_scale_lr = dict(base_batch_size=128)
randomness = dict(seed=0)
default_hooks = dict(
    momentum=dict(momentum=0.99),  # 0.996 would remember 250 of 640 iterations
    checkpoint=dict(interval=5, save_optimizer=False, save_param_scheduler=False),
    logger=dict(interval=40),
)
