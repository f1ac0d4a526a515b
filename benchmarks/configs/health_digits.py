# The digits recipe with a smaller network, for runs of a few minutes on a busy core.
#
#   python benchmarks/health.py --table runs
_base_ = '../../configs/patchmix_vit-digits.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=96)),
    neck=dict(in_channels=48, hid_channels=128, out_channels=64),
    head=dict(predictor=dict(in_channels=64, hid_channels=128, out_channels=64)),
)
train_dataloader = dict(batch_size=64)
val_cfg = test_cfg = dict(more_queries=None, pixel_baseline=False)
default_hooks = dict(checkpoint=dict(interval=1000))
