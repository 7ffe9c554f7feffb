# Mask R-CNN with timm's DeiT-S, a plain ViT, on COCO, 3x.
_base_ = '../_base_/mask-rcnn_columnar_3x_coco.py'
model = dict(
    backbone=dict(
        model_name='deit_small_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/deit_small_patch16_224.fb_in1k')),
    neck=dict(in_channels=[96, 192, 384, 384]))
