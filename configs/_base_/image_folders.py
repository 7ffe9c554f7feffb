# What classifiers that are trained on folders of images have in common: loaders, loops, evaluation, checkpoints. Where the images are, how
# many make a batch, what is done to them and how long one trains, the recipes say that inherit from this. The numbers are those of DeiT's
# training script, as in imagenet.py.
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
default_scope = 'mmengine'

model = dict(type='vitzoo.Classifier', drop_path_rate=0.1, label_smoothing=0.1)
train_dataloader = dict(
    worker_init_fn=dict(type='vitzoo.keep_worker_seed'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='vitzoo.ImageFolder', input_size=224, is_training=True, interpolation='bicubic', re_mode='pixel'))
val_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='vitzoo.ImageFolder', input_size=224, interpolation='bicubic', crop_pct=0.875))
test_dataloader = val_dataloader
val_evaluator = dict(type='vitzoo.Accuracy')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', weight_decay=0.05),
    constructor='vitzoo.LayerDecayConstructor')
train_cfg = dict(type='EpochBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]
default_hooks = dict(
    logger=dict(type='LoggerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, save_best='top1', rule='greater'))
