# Mask R-CNN with DualToken-ViT-S on COCO, 1x. No weights were published, and the paper's recipe is not known to us: the schedule is
# MMDetection's for Swin.
_base_ = ['../_base_/mask-rcnn_1x_coco.py', '../_base_/backbones/dualtoken_vit_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
