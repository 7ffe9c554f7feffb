# The same with half the tokens behind the fifth block.
_base_ = './mask-rcnn_vit_small_patch14_reg4_dinov2_3x_coco.py'
model = dict(backbone=dict(reduction=dict(method='expedite', location=4, clusters=0.7)))
