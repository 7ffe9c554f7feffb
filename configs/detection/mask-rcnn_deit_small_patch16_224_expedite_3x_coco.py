# The same with half the tokens behind the fifth block.
_base_ = './mask-rcnn_deit_small_patch16_224_3x_coco.py'
model = dict(backbone=dict(reduction=dict(method='expedite', location=4, clusters=0.7)))
