# Fine-tuning on own pictures from the weights of a file: rates that fall from block to block towards the stem, one epoch of warm-up, a
# cosine to zero. All numbers are our choice, in the range that timm users take, and were not tuned. A batch is 32 pictures; with another
# number the rate follows in proportion.
# The data: IMAGES/train/CLASS/PICTURE and IMAGES/val/CLASS/PICTURE, in data/images or where the environment variable IMAGES points. There
# are as many classes as folders.
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
default_scope = 'mmengine'
data_root = '{{$IMAGES:data/images}}/'

model = dict(type='vitzoo.Classifier', drop_path_rate=0.1, label_smoothing=0.1)
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    worker_init_fn=dict(type='vitzoo.keep_worker_seed'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='vitzoo.ImageFolder', root=data_root + 'train', input_size=224, is_training=True, interpolation='bicubic',
        scale=(0.35, 1.0), color_jitter=0.3, re_prob=0.1, re_mode='pixel'))
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='vitzoo.ImageFolder', root=data_root + 'val', input_size=224, interpolation='bicubic', crop_pct=0.875))
test_dataloader = val_dataloader
val_evaluator = dict(type='vitzoo.Accuracy')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay=0.8),
    clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(enable=True, base_batch_size=32)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='top1', rule='greater'))
