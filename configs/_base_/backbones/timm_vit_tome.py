# The same, which merges 40 of the 320 tokens in each block.
_base_ = './timm_vit.py'
detection = segmentation = dict(reduction=dict(method='tome', r=40))
