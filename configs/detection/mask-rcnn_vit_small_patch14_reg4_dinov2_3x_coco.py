# Mask R-CNN with timm's DINOv2-S with registers, its patches of 14 pixels resampled to 16, on COCO, 3x.
_base_ = '../_base_/mask-rcnn_columnar_3x_coco.py'
model = dict(
    backbone=dict(
        model_name='vit_small_patch14_reg4_dinov2', patch_size=16,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch14_reg4_dinov2.lvd142m')),
    neck=dict(in_channels=[96, 192, 384, 384]))
