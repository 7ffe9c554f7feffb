# Semantic FPN with CAS-ViT-S on ADE20K, 80k iterations. Published were 40k iterations of as many crops, with a rate that falls as a
# polynomial (fpn_rcvit_*_512x512_40k_ade20k_bs4.py in segmentation/configs/RCViT of Tianfang-Zhang/CAS-ViT).
_base_ = ['../_base_/fpn_80k_ade20k.py', '../_base_/backbones/cas_vit_s.py']
model = dict(backbone=_base_.segmentation, neck=dict(in_channels=_base_.channels))
