# Semantic FPN with BiFormer-T on ADE20K, 80k iterations.
_base_ = ['../_base_/fpn_80k_ade20k.py', '../_base_/backbones/biformer_tiny.py']
model = dict(backbone=dict(_base_.segmentation, drop_path_rate=0.1), neck=dict(in_channels=_base_.channels))
