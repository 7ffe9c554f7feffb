# The same, whose 16x20 tokens are 8x10 clusters behind the second of six blocks.
_base_ = './mask-rcnn_timm_dinov3_digits.py'
model = dict(backbone=dict(reduction=dict(method='expedite', location=1, clusters=(8, 10))))
