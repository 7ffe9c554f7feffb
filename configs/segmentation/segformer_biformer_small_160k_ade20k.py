# SegFormer head with BiFormer-S on ADE20K, 160k iterations.
_base_ = ['../_base_/segformer_160k_ade20k.py', '../_base_/backbones/biformer_small.py']
model = dict(backbone=_base_.segmentation, decode_head=dict(in_channels=_base_.channels))
