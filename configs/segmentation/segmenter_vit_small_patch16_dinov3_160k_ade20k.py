# Segmenter with timm's DINOv3-S, on ADE20K, 160k iterations.
_base_ = '../_base_/segmenter_160k_ade20k.py'
model = dict(
    backbone=dict(
        model_name='vit_small_patch16_dinov3',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch16_dinov3.lvd1689m')))
