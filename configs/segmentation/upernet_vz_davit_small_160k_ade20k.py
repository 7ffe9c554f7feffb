# UPerNet with DaViT-S on ADE20K, 160k iterations.
_base_ = ['../_base_/upernet_160k_ade20k.py', '../_base_/backbones/vz_davit_small.py']
model = dict(
    backbone=_base_.segmentation,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))  # weight decay on all parameters, as published
