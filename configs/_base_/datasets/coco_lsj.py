# COCO with large scale jitter, repeated 4 times per epoch: mmdet's, without its runtime and
# without variables that do not affect the loaders.
_base_ = 'mmdet::common/lsj-100e_coco-instance.py'

kept = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator')
kept += ('train_cfg', 'val_cfg', 'test_cfg', 'auto_scale_lr')
[_base_.pop(key) for key in list(_base_) if key not in kept]
del kept

# Checks the annotation files; skips and counts unreadable images.
train_dataloader = dict(dataset=dict(dataset=dict(type='mmpatchmix.CocoDataset')))
val_dataloader = test_dataloader = dict(dataset=dict(type='mmpatchmix.CocoDataset'))
