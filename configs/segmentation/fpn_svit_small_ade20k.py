# Semantic FPN with SViT-S on ADE20K, 80k iterations of 8 x 4 images.
# The weights lie on a share that no program can download from; `vitzoo info svit_small` says where.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py', 'mmseg::_base_/datasets/ade20k.py', 'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook')]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True, type='vitzoo.Backbone', model_name='svit_small', drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/stvit-small-224.pth')),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay=1.0))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=80000)]
