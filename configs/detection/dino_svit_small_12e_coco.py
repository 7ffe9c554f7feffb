# DINO with SViT-S on COCO, 12 epochs.
_base_ = ['../_base_/dino_12e_coco.py', '../_base_/backbones/svit_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels[1:]))
