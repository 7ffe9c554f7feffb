# Mask R-CNN with SViT-S on COCO, 1x.
# The weights lie on a share that no program can download from; `vitzoo info svit_small` says where.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py', 'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook')]
model = dict(
    backbone=dict(
        _delete_=True, type='vitzoo.Backbone', model_name='svit_small', drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/stvit-small-224.pth')),
    neck=dict(in_channels=[64, 128, 320, 512]))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay=1.0))
