# Fine-tuning of `cifar10_small.py`: the recipe of CIFAR-10 on every tenth image, 5 epochs.
# Meant for one CPU core.
#
#   python tools/train.py benchmarks/configs/cifar10_small_finetune.py --data-root PATH \
#       --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/cifar10_small/epoch_10.pth
_base_ = '../../configs/finetune/vit-t_cifar10.py'

model = dict(
    data_preprocessor=dict(to_rgb=True),  # files, so BGR
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        patch_size=4,
    ),
    head=dict(in_channels=96),
)
load = dict(type='LoadImageFromFile')
folder = dict(_delete_=True, type='mmpatchmix.ImageFolder', data_root='data/cifar10', labels=True)
steps = [load, *_base_.train_dataloader.dataset.pipeline]
view = [load, *_base_.val_dataloader.dataset.pipeline]
few = dict(folder, data_prefix='train', indices=list(range(0, 50000, 10)), pipeline=steps)
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False, dataset=few)
val_dataloader = test_dataloader = dict(
    num_workers=0, dataset=dict(folder, data_prefix='test', pipeline=view, test_mode=True)
)
del load, folder, few, steps, view
# base lr 1e-3 per 256 images: 1e-3 * 64 / 256 = 2.5e-4
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
_base_.param_scheduler[0].end = 1
_base_.param_scheduler[1].update(begin=1, end=5)
train_cfg = dict(max_epochs=5, val_interval=5)
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
# 0.99996 would average over 25,000 iterations; these are 390.
custom_hooks = [dict(type='EMAHook', momentum=0.01, priority='ABOVE_NORMAL', evaluate_on_ema=True)]
