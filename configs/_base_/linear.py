# A linear probe: the backbone stands still, one layer on its class token is trained.
_base_ = './classification.py'

model = dict(
    backbone=dict(frozen_stages=12),  # all of them: no gradient, evaluation mode
    head=dict(loss=dict(type='CrossEntropyLoss')),
)
optim_wrapper = dict(
    type='OptimWrapper',
    # base lr 0.02 per 256 images: 0.02 * 1024 / 256 = 0.08
    optimizer=dict(type='SGD', lr=0.08, momentum=0.9, weight_decay=0.0),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=0,
        end=100,
        convert_to_iter_based=True,
    ),
]
