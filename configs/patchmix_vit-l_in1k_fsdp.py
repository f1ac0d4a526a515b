# PatchMix, ViT-L/16, ImageNet-1K, weights sharded over the GPUs (https://arxiv.org/abs/2306.12243).
#
# No paper has figures for it, and it has not been run to its end: everything but size and
# wrapper is ViT-B's. Meant for 8 GPUs x 128 images. Blocks are recomputed in the backward, 19 %
# more arithmetic: without that, 128 images would not fit into 80 GB (docs/scaling.md).
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
#
#   bash tools/dist_train.sh configs/patchmix_vit-l_in1k_fsdp.py 8
#
# Checkpoints are whole, as without FSDP. On several machines, one copy of the weights on each:
# --cfg-options model_wrapper_cfg.ranks_per_copy=8
#
# torch's fully_shard under the plain Runner. mmengine's FSDPStrategy belongs to FlexibleRunner,
# whose checkpoints and hooks are others, and to torch's older FullyShardedDataParallel.
_base_ = './patchmix_vit-b_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(embed_dims=1024, num_layers=24, num_heads=16, feedforward_channels=4096),
        with_cp=True,
    ),
)
model_wrapper_cfg = dict(_delete_=True, type='mmpatchmix.PatchMixFSDP')
