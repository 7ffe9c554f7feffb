# The same, and none of its weights is trained.
_base_ = './mask-rcnn_vit_small_patch16_dinov3_3x_coco.py'
model = dict(backbone=dict(frozen_stages=4))
