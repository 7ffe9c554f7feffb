# The same with half the tokens behind the fifth block.
_base_ = './upernet_vit_small_patch14_reg4_dinov2_160k_ade20k.py'
model = dict(backbone=dict(reduction=dict(method='expedite', location=4, clusters=0.7)))
