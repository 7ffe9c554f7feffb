# Cascade Mask R-CNN with BiFormer-B on COCO, 3x.
_base_ = ['../_base_/cascade-mask-rcnn_3x_coco.py', '../_base_/backbones/biformer_base.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
