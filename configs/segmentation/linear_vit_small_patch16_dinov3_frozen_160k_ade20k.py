# One linear layer on the maps of timm's DINOv3-S, of which none of the weights is trained, on ADE20K, 160k iterations.
_base_ = '../_base_/linear_160k_ade20k.py'
model = dict(
    backbone=dict(
        model_name='vit_small_patch16_dinov3', frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch16_dinov3.lvd1689m')))
