# UPerNet with timm's DINOv3-S, on ADE20K, 160k iterations.
_base_ = '../_base_/upernet_columnar_160k_ade20k.py'
model = dict(
    backbone=dict(
        model_name='vit_small_patch16_dinov3',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch16_dinov3.lvd1689m')),
    decode_head=dict(in_channels=[96, 192, 384, 384]),
    auxiliary_head=dict(in_channels=384))
