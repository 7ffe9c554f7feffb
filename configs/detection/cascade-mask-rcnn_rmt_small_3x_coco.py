# Cascade Mask R-CNN with RMT-S on COCO, 3x.
_base_ = ['../_base_/cascade-mask-rcnn_3x_coco.py', '../_base_/backbones/rmt_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
