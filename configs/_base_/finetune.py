# Fine-tuning on own pictures from the weights of a file: rates that fall from block to block towards the stem, one epoch of warm-up, a
# cosine to zero. All numbers are our choice, in the range that timm users take, and were not tuned. A batch is 32 pictures; with another
# number the rate follows in proportion.
# The data: IMAGES/train/CLASS/PICTURE and IMAGES/val/CLASS/PICTURE, in data/images or where the environment variable IMAGES points. There
# are as many classes as folders.
_base_ = 'image_folders.py'
data_root = '{{$IMAGES:data/images}}/'

train_dataloader = dict(
    batch_size=32, num_workers=4, dataset=dict(root=data_root + 'train', scale=(0.35, 1.0), color_jitter=0.3, re_prob=0.1))
val_dataloader = dict(batch_size=32, num_workers=4, dataset=dict(root=data_root + 'val'))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay=0.8), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(enable=True, base_batch_size=32)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
