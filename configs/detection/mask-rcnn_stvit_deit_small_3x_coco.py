# Mask R-CNN with STViT-DeiT-S on COCO, 3x. No weights were published; `vitzoo info stvit_deit_small` tells more. This trains from scratch,
# or set init_cfg to your own.
_base_ = '../_base_/mask-rcnn_columnar_3x_coco.py'
model = dict(
    backbone=dict(model_name='stvit_deit_small'),
    neck=dict(in_channels=[96, 192, 384, 384]))
