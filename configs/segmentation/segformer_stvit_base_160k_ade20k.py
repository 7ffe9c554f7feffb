# SegFormer head with STViT-R-Swin-B on ADE20K, 160k iterations.
_base_ = ['../_base_/segformer_160k_ade20k.py', '../_base_/backbones/stvit_base.py']
model = dict(backbone=_base_.segmentation, decode_head=dict(in_channels=_base_.channels))
