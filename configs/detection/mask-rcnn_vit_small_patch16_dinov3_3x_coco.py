# Mask R-CNN with timm's DINOv3-S, on COCO, 3x.
_base_ = '../_base_/mask-rcnn_columnar_3x_coco.py'
model = dict(
    backbone=dict(
        model_name='vit_small_patch16_dinov3',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch16_dinov3.lvd1689m')),
    neck=dict(in_channels=[96, 192, 384, 384]))
