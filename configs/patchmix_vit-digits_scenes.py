# PatchMix on unlabelled pieces of ink, 32x32 pixels each, cut out of scenes of digits.
#
# Meant for 2 CPU cores, about 8 minutes. No paper has figures for it. A detector from this backbone
# has 38 % mask AP with 50 annotated scenes, one from random weights 34 % (docs/evidence.md). The
# first command makes the scenes, cuts the pieces, runs this config and trains both detectors:
#
#   python examples/demo_coco.py --pretrain
#   python tools/train.py configs/patchmix_vit-digits_scenes.py
_base_ = './patchmix_vit-digits.py'

# A detector uses patch tokens: their mean represents a view, instead of the class token.
model = dict(backbone=dict(out_type='avg_featmap'))
# Views as in the demo: moved, resized and turned on black. A digit that overlaps others is as it
# was cut out, with pieces of them.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmpatchmix.ImageFolder',
        data_root='work_dirs/digit_scenes/crops',
        labels=False,
        pipeline=[dict(type='LoadImageFromFile'), *_base_.train_dataloader.dataset.pipeline],
    )
)
# There are no labels for an evaluation.
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None

# 25 epochs of 34 iterations, 3 of them warm-up: about as many as the demo has
_base_.param_scheduler[0].end = 3
_base_.param_scheduler[1].update(begin=3, end=25)
train_cfg = dict(max_epochs=25, val_interval=25)
default_hooks = dict(checkpoint=dict(interval=25), report=dict(evaluate_untrained=False))
