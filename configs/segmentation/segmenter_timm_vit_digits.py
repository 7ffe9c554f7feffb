# Segmenter with a plain ViT of timm: few channels and blocks, patches of 8 pixels, whose map of stride 8 the mask transformer takes.
_base_ = './upernet_svit_micro_digits.py'
model = dict(
    backbone=dict(
        _delete_=True, type='vitzoo.Backbone', model_name='vit_tiny_patch16_224', embed_dim=96, depth=6, num_heads=3, patch_size=8,
        img_size=(128, 160), out_indices=(1,)),
    decode_head=dict(
        _delete_=True, type='SegmenterMaskTransformerHead', in_channels=96, channels=96, num_classes=11, num_layers=2, num_heads=3,
        embed_dims=96, dropout_ratio=0.0,
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', loss_weight=1.0),
            dict(type='vitzoo.ClassDiceLoss', loss_weight=1.0),
        ]))
