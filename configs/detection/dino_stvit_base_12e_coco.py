# DINO with STViT-R-Swin-B on COCO, 12 epochs.
_base_ = ['../_base_/dino_12e_coco.py', '../_base_/backbones/stvit_base.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels[1:]))
