# PatchMix, ViT-S/16, on a folder of your own images: flat or one folder per class,
# labelled or not. Of labelled images 5 % are held out for the online kNN; without labels
# that is skipped and all images are trained on.
#
# Meant for 1 GPU x 128 images; add --auto-scale-lr for any other batch. 2 crops of 224 and
# 8 of 96 pixels. No paper has figures for your images: watch `knn/top1`, `acc_source` and `kl`.
# Another size: PATCHMIX_IMG_SIZE=160 before the command changes crops, test views and positions.
#
#   python tools/train.py configs/patchmix_vit-s_folder.py --data-root PATH
_base_ = './patchmix_vit-s_in1k.py'

images = dict(data_root='data/images', data_prefix='', labels='auto')
train_dataloader = dict(dataset=dict(**images, split='train'))
val_dataloader = test_dataloader = dict(dataset=dict(**images, split='val'))
val_cfg = test_cfg = dict(bank_dataloader=train_dataloader)
del images
# base lr 5e-4 per 256 images: 5e-4 * 128 / 256 = 2.5e-4
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
auto_scale_lr = dict(base_batch_size=128)
