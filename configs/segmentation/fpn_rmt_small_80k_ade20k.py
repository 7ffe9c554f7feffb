# Semantic FPN with RMT-S on ADE20K, 80k iterations.
_base_ = ['../_base_/fpn_80k_ade20k.py', '../_base_/backbones/rmt_small.py']
model = dict(backbone=_base_.segmentation, neck=dict(in_channels=_base_.channels))
