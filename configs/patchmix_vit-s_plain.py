# PatchMix, ViT-S/16, on images of any kind, depth and number of channels, without augmentation:
# both views are the whole image, unchanged, and mixing alone makes the task. For images whose
# meaning crops, flips or colours could change (docs/own-images.md says when to take which).
#
# Meant for 1 GPU x 128 images; add --auto-scale-lr for any other batch. No paper has figures for
# it; docs/evidence.md has ours for a small ViT. Options are those of patchmix_vit-s_any.py.
#
#   PATCHMIX_CHANNELS=5 PATCHMIX_VALUES=0,4095 \
#       python tools/train.py configs/patchmix_vit-s_plain.py --data-root PATH --stats auto
_base_ = './patchmix_vit-s_any.py'

load, crops, pack = _base_.train_dataloader.dataset.pipeline
# The whole image; of other proportions than the network's, the largest part in the middle.
whole = dict(
    type='mmpatchmix.MultiCrop',
    global_size=crops.global_size,
    global_scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
)
train_dataloader = dict(dataset=dict(pipeline=[load, whole, pack]))
# M = 2: 3 (digits, X-rays) and 4 (digits) are level with it there (docs/evidence.md).
model = dict(data_preprocessor=dict(augment=dict(_delete_=True)))
del load, crops, pack, whole
