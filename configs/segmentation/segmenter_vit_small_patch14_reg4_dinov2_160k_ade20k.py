# Segmenter with timm's DINOv2-S with registers, its patches of 14 pixels resampled to 16, on ADE20K, 160k iterations.
_base_ = '../_base_/segmenter_160k_ade20k.py'
model = dict(
    backbone=dict(
        model_name='vit_small_patch14_reg4_dinov2', patch_size=16,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch14_reg4_dinov2.lvd142m')))
