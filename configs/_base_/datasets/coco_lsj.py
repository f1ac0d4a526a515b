# COCO with large scale jitter, repeated 4 times per epoch: mmdet's, without its runtime.
_base_ = 'mmdet::common/lsj-100e_coco-instance.py'

_kept = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator')
_kept += ('train_cfg', 'val_cfg', 'test_cfg', 'auto_scale_lr')
[_base_.pop(key) for key in list(_base_) if key not in _kept]
del _kept
