# What the recipes on digit scenes share: seconds an iteration on one CPU core, so no workers and no epochs.
# Choose on the validation part, by tools/train.py; tools/test.py evaluates on the test part, whose digits neither of the others has.
# The data: python -m vitzoo.datasets.digit_scenes --out data/digit_scenes (or where the environment variable DIGIT_SCENES points).
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]

# Warm-up times a cosine that reaches to the end of training, whatever max_iters is set to.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, eta_min=0),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay=1.0),
    clip_grad=dict(max_norm=5))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=500, val_interval=100000)  # also evaluated after the last iteration
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
