# Crops of digit scenes, classified by the micro SViT.
_base_ = ['../_base_/digits.py']
default_scope = 'mmengine'
data_root = '{{$DIGIT_SCENES:data/digit_scenes}}/classification/'
model = dict(
    type='vitzoo.Classifier', model_name='svit_micro', num_classes=10, label_smoothing=0.05,
    # not the published deviation of 0.02, which is small for 32 to 192 channels and makes learning slow
    init_cfg=dict(type='Xavier', layer='Linear', distribution='uniform'))
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(  # a six is no nine: no flips, mild crops; colours vary as it is
        type='vitzoo.ImageFolder', root=data_root + 'train', input_size=48, is_training=True, hflip=0, scale=(0.7, 1.0), ratio=(0.8, 1.25),
        color_jitter=None, interpolation='bilinear'))
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    # the middle, so that digits are as large as in the crops of training
    dataset=dict(type='vitzoo.ImageFolder', root=data_root + 'val', input_size=48, crop_pct=0.875))
test_dataloader = dict(val_dataloader, dataset=dict(val_dataloader['dataset'], root=data_root + 'test'))
val_evaluator = dict(type='vitzoo.Accuracy')
test_evaluator = val_evaluator
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=1, by_epoch=False, begin=0, eta_min=0),  # straight to zero, as in UPerNet's recipe
]
train_cfg = dict(max_iters=1300)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=1))
log_processor = dict(by_epoch=False, window_size=10)
