# Mask R-CNN with LookupViT-S/16 on COCO, 3x. No weights were published; `vitzoo info lookupvit_small_patch16` tells more. This trains from
# scratch, or set init_cfg to your own.
_base_ = '../_base_/mask-rcnn_columnar_3x_coco.py'
model = dict(
    backbone=dict(model_name='lookupvit_small_patch16'),
    neck=dict(in_channels=[96, 192, 384, 384]))
