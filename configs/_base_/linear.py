# A linear probe: the backbone is frozen, one layer on its class token is trained.
_base_ = './classification.py'

model = dict(
    backbone=dict(frozen_stages=1000),  # all blocks of any ViT: no gradient, evaluation mode
    head=dict(loss=dict(type='CrossEntropyLoss')),
)
# The training transforms after the crop; each config adds its own crop.
after_crop = [dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')]
optim_wrapper = dict(
    type='OptimWrapper',
    # base lr 0.02 per 256 images: 0.02 * 1024 / 256 = 0.08
    optimizer=dict(type='SGD', lr=0.08, momentum=0.9, weight_decay=0.0),
)
schedule = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=100, **schedule)]
del schedule
