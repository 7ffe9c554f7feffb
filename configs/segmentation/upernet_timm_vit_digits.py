# UPerNet with a plain ViT of timm: few channels and blocks, patches of 8 pixels.
_base_ = './upernet_svit_micro_digits.py'
model = dict(
    backbone=dict(
        _delete_=True, type='vitzoo.Backbone', model_name='vit_tiny_patch16_224', embed_dim=96, depth=6, num_heads=3, patch_size=8,
        img_size=(128, 160)),
    decode_head=dict(in_channels=[48, 96, 96, 96]))
