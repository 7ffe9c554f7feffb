# Mask R-CNN with a small DINOv3 of timm: few channels and blocks, patches of 8 pixels.
_base_ = './mask-rcnn_svit_micro_digits.py'
model = dict(
    backbone=dict(
        _delete_=True, type='vitzoo.Backbone', model_name='vit_small_patch16_dinov3', embed_dim=96, depth=6, num_heads=3, patch_size=8),
    neck=dict(in_channels=[48, 96, 96, 96]))
