# Shared by linear probes and fine-tuning: a classifier on a pre-trained ViT-S/16, its
# evaluation, and 100 epochs.
_base_ = './runtime.py'

model = dict(
    type='mmpatchmix.ImageClassifier',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='mmpatchmix.PatchMixViT',
        arch=dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536),
        patch_size=16,
        # checkpoint: a pre-training checkpoint as it is, or a converted one
        init_cfg=dict(type='Pretrained', checkpoint=None),
    ),
    head=dict(type='LinearClsHead'),
)

train_cfg = dict(type='mmpatchmix.ExactTrainLoop', max_epochs=100, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = test_evaluator = dict(type='mmpatchmix.Accuracy', topk=(1, 5))
auto_scale_lr = dict(base_batch_size=1024, enable=False)
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook', enable=False),
)
