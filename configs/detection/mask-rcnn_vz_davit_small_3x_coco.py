# Mask R-CNN with DaViT-S on COCO, 3x. The recipe of mmdet/configs/davit_maskrcnn_3x_coco.py of dingmyu/davit: multi-scale crops.
_base_ = ['../_base_/mask-rcnn_3x_coco.py', '../_base_/backbones/vz_davit_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))  # weight decay on all parameters, as published
