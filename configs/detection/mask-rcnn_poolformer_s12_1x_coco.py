# Mask R-CNN with timm's PoolFormer-S12 on COCO, 1x. Optimizer and warm-up as in detection/configs/mask_rcnn_poolformer_s12_fpn_1x_coco.py
# of sail-sg/poolformer, which took them from PVT: AdamW, 2e-4, weight decay 1e-4 on all parameters.
_base_ = ['../_base_/mask-rcnn_1x_coco.py', '../_base_/backbones/poolformer_s12.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
