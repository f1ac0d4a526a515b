# AdamW for 800 epochs at batch 512; everything is scheduled per iteration.
_base_ = './adamw_in1k_300e.py'

# base lr 5e-4 per 256 images: 5e-4 * 512 / 256 = 1e-3
optim_wrapper = dict(optimizer=dict(lr=1e-3))
_base_.param_scheduler[0].end = 100  # linear warm-up
_base_.param_scheduler[1].update(begin=100, end=800)  # learning rate
_base_.param_scheduler[2].end = 800  # weight decay
train_cfg = dict(max_epochs=800)
auto_scale_lr = dict(base_batch_size=512)
