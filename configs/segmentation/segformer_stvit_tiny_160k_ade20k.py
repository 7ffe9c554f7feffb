# SegFormer head with STViT-R-Swin-T on ADE20K, 160k iterations.
_base_ = ['../_base_/segformer_160k_ade20k.py', '../_base_/backbones/stvit_tiny.py']
model = dict(backbone=_base_.segmentation, decode_head=dict(in_channels=_base_.channels))
