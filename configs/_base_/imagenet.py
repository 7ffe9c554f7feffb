# Training on ImageNet-1k from scratch: what the published recipes of our families share, in the numbers of DeiT's training script
# (https://github.com/facebookresearch/deit, defaults of main.py), from which they come. A batch is 8 x 128 images; with another
# number of processes or images the rate follows in proportion (the script: 5e-4 x batch / 512).
# The data: IMAGENET/train/CLASS/IMAGE and IMAGENET/val/CLASS/IMAGE, in data/imagenet or where the environment variable IMAGENET points.
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
default_scope = 'mmengine'
data_root = '{{$IMAGENET:data/imagenet}}/'

model = dict(
    type='vitzoo.Classifier', num_classes=1000, drop_path_rate=0.1, label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode='batch'))
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    worker_init_fn=dict(type='vitzoo.keep_worker_seed'),
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    # color_jitter=0.4 of the script has no effect: timm leaves it out where RandAugment is on
    dataset=dict(
        type='vitzoo.ImageFolder', root=data_root + 'train', input_size=224, is_training=True, interpolation='bicubic',
        auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25, re_mode='pixel', re_count=1))
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='vitzoo.ImageFolder', root=data_root + 'val', input_size=224, interpolation='bicubic', crop_pct=0.875))
test_dataloader = val_dataloader
val_evaluator = dict(type='vitzoo.Accuracy')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay=1.0))
auto_scale_lr = dict(enable=True, base_batch_size=1024)
# Five epochs from 1e-6, then a cosine to 1e-5, which begins at its top; the script changes the rate once an epoch and lets its cosine
# run from the first, where five epochs of 300 are 0.07 % of the rate.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='top1', rule='greater'))
env_cfg = dict(cudnn_benchmark=True)
