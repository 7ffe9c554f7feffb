# Mask2Former with SViT-B on ADE20K, 160k iterations.
_base_ = ['../_base_/mask2former_160k_ade20k.py', '../_base_/backbones/svit_base.py']
model = dict(backbone=_base_.segmentation, decode_head=dict(in_channels=_base_.channels))
