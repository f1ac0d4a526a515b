# Two epochs of fine-tuning on digits from the demo's backbone: the last step of `make evaluate`.
#
# Meant for 1 CPU core, a few seconds.
#
#   python tools/train.py configs/finetune/vit-digits_plain.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/digits/epoch_20.pth
_base_ = './vit-digits.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=256)),
)
