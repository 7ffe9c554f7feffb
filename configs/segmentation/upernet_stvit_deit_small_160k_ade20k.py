# UPerNet with STViT-DeiT-S on ADE20K, 160k iterations. No weights were published; `vitzoo info stvit_deit_small` tells more. This trains
# from scratch, or set init_cfg to your own.
_base_ = '../_base_/upernet_columnar_160k_ade20k.py'
model = dict(
    backbone=dict(model_name='stvit_deit_small'),
    decode_head=dict(in_channels=[96, 192, 384, 384]),
    auxiliary_head=dict(in_channels=384))
