# The recipe for continuing (configs/patchmix_vit-s_continue.py) at a size that a CPU core manages:
# the network is that of --init (here of continue_source.py), images of 24 pixels, no local crops.
#
#   python benchmarks/continuing.py --data-root PATH    # lays out the images, and runs this
_base_ = '../../configs/patchmix_vit-s_continue.py'

model = dict(
    backbone=dict(img_size=24),
    neck=dict(hid_channels=512, out_channels=128),
    head=dict(predictor=dict(in_channels=128, hid_channels=512, out_channels=128)),
)
_base_.train_dataloader.dataset.pipeline[0].update(global_size=24, num_local=0)
for part in (
    _base_.val_dataloader.dataset,
    _base_.test_dataloader.dataset,
    _base_.val_cfg.bank_dataloader.dataset,
    _base_.test_cfg.bank_dataloader.dataset,
):
    part.pipeline[1].scale, part.pipeline[2].crop_size = 27, 24
del part
# A tenth of the rate at which such a network learns from nothing (methods.py).
optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_cfg = dict(val_interval=5)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, interval=1000))
