# PatchMix on scikit-learn's 1,797 handwritten digits: the demo, for a CPU.
#
# Meant for 2 CPU cores, 3 to 6 minutes. No paper has figures for it. On moved, resized and turned
# digits kNN reaches 59 % on raw pixels, and 87 % on features trained on such views without labels.
#
#   python tools/train.py configs/patchmix_vit-digits.py
_base_ = [
    './_base_/models/patchmix_vit-s16.py',
    './_base_/datasets/digits.py',
    './_base_/schedules/adamw_in1k_300e.py',
    './_base_/pretraining.py',
]

# -- model: 32x32 pixels in 8x8 patches are 16 tokens
img_size = _base_.pop('img_size')
model = dict(
    data_preprocessor=dict(
        patch_size=8,
        mean=_base_.pop('mean'),
        std=_base_.pop('std'),
        augment=dict(_delete_=True),  # grey strokes: neither colour nor blur nor mirrored digits
    ),
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=img_size,
        patch_size=8,
        drop_path_rate=0.0,
    ),
    neck=dict(hid_channels=512, out_channels=128),
    head=dict(predictor=dict(hid_channels=512, out_channels=128)),
)

# -- data
# Digits end at the border of their image: views move, resize and turn them on black.
affine = dict(scale=(0.75, 1.1), interpolation='bilinear')
views = dict(
    type='mmpatchmix.TransformViews',
    transforms=[
        dict(type='NumpyToPIL'),
        dict(type='torchvision/RandomAffine', degrees=20, translate=(0.125, 0.125), **affine),
        dict(type='PILToNumpy'),
    ],
)
train_dataloader = dict(dataset=dict(pipeline=[views, dict(type='mmpatchmix.PackViews')]))
bank = dict(_base_.val_dataloader.dataset, split='train')
changed = dict(_base_.val_dataloader.dataset, changed=True)
val_cfg = test_cfg = dict(
    type='mmpatchmix.KNNLoop',
    bank_dataloader=dict(_base_.val_dataloader, dataset=bank),
    # The test digits, moved, resized and turned, unlike the bank images.
    more_queries=dict(changed=dict(_base_.val_dataloader, dataset=changed)),
    pixel_baseline=True,
)
val_evaluator = test_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10,))
del img_size, affine, views, bank, changed

# -- schedule: 80 epochs of 11 iterations
optim_wrapper = dict(
    enabled=False,  # the network is too small to gain from it
    # base lr 6e-3 per 256 images: 6e-3 * 128 / 256 = 3e-3. The network is small and the run
    # short: the rate is high, the weight decay stays low.
    optimizer=dict(lr=3e-3),
)
_base_.param_scheduler[0].end = 8  # linear warm-up
_base_.param_scheduler[1].update(begin=8, end=80)  # learning rate
_base_.param_scheduler.pop()  # weight decay
train_cfg = dict(max_epochs=80)
auto_scale_lr = dict(base_batch_size=128)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=11),
    checkpoint=dict(interval=20),
    # 0.996 would average over 250 iterations, a third of this run; 0.95 over 20.
    momentum=dict(momentum=0.95),
    report=dict(evaluate_untrained=True),
)
log_processor = dict(window_size=11)
