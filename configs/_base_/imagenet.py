# Training on ImageNet-1k from scratch: what the published recipes of our families share, in the numbers of DeiT's training script
# (https://github.com/facebookresearch/deit, defaults of main.py), from which they come. A batch is 8 x 128 images; with another
# number of processes or images the rate follows in proportion (the script: 5e-4 x batch / 512).
# The data: IMAGENET/train/CLASS/IMAGE and IMAGENET/val/CLASS/IMAGE, in data/imagenet or where the environment variable IMAGENET points.
_base_ = 'image_folders.py'
data_root = '{{$IMAGENET:data/imagenet}}/'

model = dict(num_classes=1000, mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode='batch'))
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    drop_last=True,
    # color_jitter=0.4 of the script has no effect: timm leaves it out where RandAugment is on
    dataset=dict(root=data_root + 'train', auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25, re_count=1))
val_dataloader = dict(batch_size=128, num_workers=8, dataset=dict(root=data_root + 'val'))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8), paramwise_cfg=dict(layer_decay=1.0))
auto_scale_lr = dict(enable=True, base_batch_size=1024)
# Five epochs from 1e-6, then a cosine to 1e-5, which begins at its top; the script changes the rate once an epoch and lets its cosine
# run from the first, where five epochs of 300 are 0.07 % of the rate.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=300)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(max_keep_ckpts=2))
env_cfg = dict(cudnn_benchmark=True)
