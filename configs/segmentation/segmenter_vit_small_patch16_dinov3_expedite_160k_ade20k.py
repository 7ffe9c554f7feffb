# The same with half the tokens behind the fifth block.
_base_ = './segmenter_vit_small_patch16_dinov3_160k_ade20k.py'
model = dict(backbone=dict(reduction=dict(method='expedite', location=4, clusters=0.7)))
