# PatchMix, ViT-S/16, on a folder of your own images: flat or one folder per class,
# labelled or not. Of labelled images 5 % are held out for the online kNN; without labels
# that is skipped and all images are trained on.
#
# Meant for 1 GPU x 128 images (--auto-scale-lr for any other batch); 2 crops of 224 and 8
# of 96 pixels. There is no published figure for your images: watch kNN and `gap_source`.
#
#   python tools/train.py configs/patchmix_vit-s_folder.py --data-root PATH --amp --auto-scale-lr
_base_ = './patchmix_vit-s_in1k.py'

train = dict(data_root='data/images', data_prefix='', labels='auto', split='train')
held_out = dict(data_root='data/images', data_prefix='', labels='auto', split='val')
train_dataloader = dict(dataset=train)
val_dataloader = test_dataloader = dict(dataset=held_out)
val_cfg = test_cfg = dict(bank_dataloader=dict(dataset=train))
