# PatchMix, ViT-S/16, on your own images of any depth and number of channels: microscopes,
# satellites, scanners, inspection cameras (docs/own-images.md). TIFF, PNG, NumPy, DICOM.
#
# Meant for 1 GPU x 128 images; add --auto-scale-lr for any other batch. 2 crops of 224 and
# 8 of 96 pixels. No paper has figures for your images: watch `knn/top1` (in %), `acc_source`, `kl`.
# `mmpatchmix stats PATH` prints what to write below, and mean and std to go with it.
# Where crops, flips or brightness could change what an image means: patchmix_vit-s_plain.py.
#
#   PATCHMIX_CHANNELS=5 PATCHMIX_VALUES=0,4095 \
#       python tools/train.py configs/patchmix_vit-s_any.py --data-root PATH --stats auto
_base_ = './patchmix_vit-s_folder.py'

# The channels of the files.
channels = int('{{$PATCHMIX_CHANNELS:3}}')
# 'dtype', 'LOW,HIGH' or 'percentile,LOW,HIGH': which values become 0 and 255.
values = '{{$PATCHMIX_VALUES:dtype}}'

load = dict(type='mmpatchmix.LoadAnyImage', channels=channels, value_range=values)
crops = dict(_base_.train_dataloader.dataset.pipeline[0], type='mmpatchmix.MultiCrop')
test_view = dict(type='mmpatchmix.ResizeCentre', size=crops['global_size'])
endings = ['.tif', '.tiff', '.png', '.jpg', '.jpeg', '.bmp', '.webp', '.ppm', '.pgm']
endings += ['.npy', '.dcm']
train_dataloader = dict(
    dataset=dict(pipeline=[load, crops, dict(type='mmpatchmix.PackViews')], extensions=endings)
)
tested = dict(pipeline=[load, test_view, dict(type='PackInputs')], extensions=endings)
val_dataloader = test_dataloader = dict(dataset=tested)
val_cfg = test_cfg = dict(bank_dataloader=dict(dataset=tested))
model = dict(
    data_preprocessor=dict(
        # On the scale 0-255. Not measured: --stats auto does, and `mmpatchmix stats` prints them.
        mean=[127.5] * channels,
        std=[127.5] * channels,
        to_rgb=False,  # as in the file
    ),
    backbone=dict(in_channels=channels),
)
del channels, values, load, crops, test_view, endings, tested
