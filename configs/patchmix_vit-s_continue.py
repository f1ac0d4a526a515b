# PatchMix from trained weights: a checkpoint of your own or a public one goes on learning from a
# folder of your images. See docs/continue.md.
#
# Meant for 1 GPU x 128 images; add --auto-scale-lr for any other batch. Width, depth, heads and
# patch size come with the checkpoint. The rate is a tenth of the folder recipe's and falls by
# 0.75 from block to block towards the pixels. The guard evaluates before the first step and after
# every epoch, and says when the network gets worse than the checkpoint was.
# No paper has figures for your images: watch `knn/top1` in %, or without labels `geometry/rank_me`.
#
#   python tools/train.py configs/patchmix_vit-s_continue.py --init CHECKPOINT --data-root PATH
_base_ = './patchmix_vit-s_folder.py'

optim_wrapper = dict(
    # base lr 5e-5 per 256 images: 5e-5 * 128 / 256 = 2.5e-5
    optimizer=dict(lr=2.5e-5),
    constructor='mmpatchmix.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75, flat_decay_mult=0.0),  # 1-D parameters do not decay
)
_base_.param_scheduler[0].end = 3  # linear warm-up
# To 0, not to 1e-6: the first blocks learn at 6e-7, and would rise to it.
_base_.param_scheduler[1].update(eta_min=0.0, begin=3, end=50)
_base_.param_scheduler.pop()  # weight decay stays at 0.04
train_cfg = dict(max_epochs=50, val_interval=1)
default_hooks = dict(
    guard=dict(type='mmpatchmix.ContinueGuardHook', stop_if_worse=False),
    checkpoint=dict(save_best='knn/top1', rule='greater'),  # with labels
)
