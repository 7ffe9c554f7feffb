# The same, which merges 40 of the 320 tokens in each block.
_base_ = './segmenter_timm_vit_digits.py'
model = dict(backbone=dict(reduction=dict(method='tome', r=40)))
