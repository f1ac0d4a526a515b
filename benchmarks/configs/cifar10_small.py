# The CIFAR-10 recipe (ViT-T, no momentum encoder) at a size that one CPU core manages in a
# quarter of an hour: every tenth training image, a narrow ViT with 4x4 patches, 10 epochs.
# Evidence that the chain works on photographs, not a claim on the paper's figures.
#
#   python tools/train.py benchmarks/configs/cifar10_small.py --data-root PATH
#
# PATH holds train/CLASS/*.jpg and test/CLASS/*.jpg.
_base_ = '../../configs/patchmix_vit-t_cifar10.py'

model = dict(
    data_preprocessor=dict(patch_size=4, to_rgb=True),  # files, so BGR
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        patch_size=4,
    ),
    neck=dict(in_channels=96, hid_channels=512, out_channels=128),
    head=dict(predictor=dict(in_channels=128, hid_channels=512, out_channels=128)),
)

load = dict(type='LoadImageFromFile')
folder = dict(_delete_=True, type='mmpatchmix.ImageFolder', data_root='data/cifar10', labels=True)
train = dict(folder, data_prefix='train', indices=list(range(0, 50000, 10)))
test_view = dict(pipeline=[load, *_base_.val_dataloader.dataset.pipeline], test_mode=True)
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(train, pipeline=[load, *_base_.train_dataloader.dataset.pipeline]),
)
val_dataloader = test_dataloader = dict(
    num_workers=0, dataset=dict(folder, data_prefix='test', **test_view)
)
val_cfg = test_cfg = dict(bank_dataloader=dict(num_workers=0, dataset=dict(train, **test_view)))
del load, folder, train, test_view

# base lr 2e-3 per 256 images: 2e-3 * 128 / 256 = 1e-3
optim_wrapper = dict(optimizer=dict(lr=1e-3))
_base_.param_scheduler[0].end = 2
_base_.param_scheduler[1].update(begin=2, end=10)
_base_.param_scheduler[2].end = 10
train_cfg = dict(max_epochs=10, val_interval=5)
auto_scale_lr = dict(base_batch_size=128)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=13), report=dict(evaluate_untrained=True))
