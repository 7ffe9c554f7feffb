# Semantic FPN with BiFormer-S on ADE20K, 80k iterations. Drop path as in semantic_segmentation/configs/ade20k/sfpn.biformer_small.py of
# rayleizhu/BiFormer.
_base_ = ['../_base_/fpn_80k_ade20k.py', '../_base_/backbones/biformer_small.py']
model = dict(backbone=dict(_base_.segmentation, drop_path_rate=0.15), neck=dict(in_channels=_base_.channels))
