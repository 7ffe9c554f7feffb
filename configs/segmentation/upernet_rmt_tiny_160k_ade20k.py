# UPerNet with RMT-T on ADE20K, 160k iterations.
_base_ = ['../_base_/upernet_160k_ade20k.py', '../_base_/backbones/rmt_tiny.py']
model = dict(
    backbone=_base_.segmentation,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]))
