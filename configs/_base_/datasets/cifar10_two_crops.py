# Pre-training on CIFAR-10: 2 crops of 32 pixels.
_base_ = './cifar10.py'

crops = dict(type='mmpatchmix.MultiCrop', global_size=_base_.img_size, global_scale=(0.1, 1.0))
train_dataloader = dict(dataset=dict(pipeline=[crops, dict(type='mmpatchmix.PackViews')]))

# Online kNN: training images, as test views, vote on the held-out ones.
queries = _base_.val_dataloader
bank = dict(queries, dataset=dict(queries.dataset, split='train'))
val_cfg = test_cfg = dict(type='mmpatchmix.KNNLoop', bank_dataloader=bank)
val_evaluator = test_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))
del crops, queries, bank
