# Mask R-CNN with timm's ConvNeXt-T on COCO, 1x. Our choice of drop path, after MMDetection's 3x recipe: 0.4.
_base_ = '../_base_/mask-rcnn_1x_coco.py'
model = dict(
    backbone=dict(
        model_name='convnext_tiny', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/convnext_tiny.fb_in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]))
