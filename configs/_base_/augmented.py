# The transforms after the crop of mmpretrain's recipe for Swin: flips, RandAugment (m9, mstd 0.5,
# inc 1), RandomErasing. Colours are BGR. Each config adds its own crop before them.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

after_crop = _base_.train_pipeline[2:]
[_base_.pop(key) for key in list(_base_)]
