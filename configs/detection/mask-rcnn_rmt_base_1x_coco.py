# Mask R-CNN with RMT-B on COCO, 1x.
_base_ = ['../_base_/mask-rcnn_1x_coco.py', '../_base_/backbones/rmt_base.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
