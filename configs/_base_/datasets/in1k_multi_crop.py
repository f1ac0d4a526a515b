# Pre-training on ImageNet-1K: 2 crops of 224 and 8 of 96 pixels. Workers decode and crop; the
# data preprocessor augments photometrically.
_base_ = './in1k.py'

crops = dict(
    type='mmpatchmix.LoadMultiCrop',
    global_size=_base_.img_size,
    global_scale=(0.35, 1.0),
    num_local=8,
    local_size=96,
    local_scale=(0.05, 0.35),
)
train_dataloader = dict(dataset=dict(pipeline=[crops, dict(type='mmpatchmix.PackViews')]))

# Online kNN: training images, as test views, vote on the held-out ones.
queries = _base_.val_dataloader
bank = dict(queries, dataset=dict(queries.dataset, data_prefix='train'))
val_cfg = test_cfg = dict(type='mmpatchmix.KNNLoop', bank_dataloader=bank)
val_evaluator = test_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))
del crops, queries, bank
