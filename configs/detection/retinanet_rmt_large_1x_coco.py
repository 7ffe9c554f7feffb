# RetinaNet with RMT-L on COCO, 1x.
_base_ = ['../_base_/retinanet_1x_coco.py', '../_base_/backbones/rmt_large.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels[1:]))
