# scikit-learn's 1,797 handwritten digits, enlarged: one fixed, stratified split. Configs add the
# training transforms.
_base_ = './digits_colours.py'

# Pixels per side of images, crops and the ViT's position embedding.
img_size = int('{{$PATCHMIX_IMG_SIZE:32}}')

loader = dict(
    num_workers=0,  # crops of 128 digits take less time than starting a worker
    persistent_workers=False,  # mmpretrain's own tool would set it
    collate_fn=dict(type='default_collate'),
)
digits = dict(type='mmpatchmix.Digits', image_size=img_size)
train_dataloader = dict(
    **loader,
    batch_size=128,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**digits, split='train'),
)
val_dataloader = dict(
    **loader,
    batch_size=256,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**digits, split='test', pipeline=[dict(type='PackInputs')], test_mode=True),
)
test_dataloader = val_dataloader
del loader, digits
