# Mask R-CNN with RMT-L on COCO, 3x.
_base_ = ['../_base_/mask-rcnn_3x_coco.py', '../_base_/backbones/rmt_large.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
