# Deformable DETR with STViT-R-Swin-S on COCO, 50 epochs.
_base_ = ['../_base_/deformable-detr_50e_coco.py', '../_base_/backbones/stvit_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels[1:]))
