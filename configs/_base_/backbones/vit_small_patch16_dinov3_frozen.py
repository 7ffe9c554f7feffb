# The same, and none of its weights is trained.
_base_ = './vit_small_patch16_dinov3.py'
detection = segmentation = dict(frozen_stages=4)
