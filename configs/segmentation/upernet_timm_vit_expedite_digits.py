# The same, whose 16x20 tokens are 8x10 clusters behind the second of six blocks.
_base_ = './upernet_timm_vit_digits.py'
model = dict(backbone=dict(reduction=dict(method='expedite', location=1, clusters=(8, 10))))
