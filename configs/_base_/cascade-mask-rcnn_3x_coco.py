# Cascade Mask R-CNN on COCO, 36 epochs of 8 x 2 images, short side 480 to 800 and random crops, box heads of four convolutions and one
# linear layer with GIoU loss. Heads and schedule are MMDetection's for ConvNeXt, the optimizer that of its Mask R-CNN with Swin: together
# what configs/swin/cascade_mask_rcnn_swin_*_mstrain_480-800_giou_4conv1f_adamw_3x_coco.py of changsn/STViT-R-Object-Detection trains.
_base_ = 'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
custom_imports = dict(_delete_=True, imports=['vitzoo.mm'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone'))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.), 'relative_position_bias_table': dict(decay_mult=0.)}))
