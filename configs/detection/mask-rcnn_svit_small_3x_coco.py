# Mask R-CNN with SViT-S on COCO, 3x.
_base_ = ['../_base_/mask-rcnn_3x_coco.py', '../_base_/backbones/svit_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
