# Semantic FPN. Digits cover a ninth of the pixels: cross-entropy alone is content with background, the dice loss is not.
_base_ = ['mmseg::_base_/models/fpn_r50.py', '../_base_/digits_segmentation.py', '../_base_/digits.py']
model = dict(
    data_preprocessor=dict(size=(128, 160)),
    pretrained=None,
    backbone=dict(_delete_=True, type='vitzoo.Backbone', model_name='svit_micro'),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=48),
    decode_head=dict(
        in_channels=[48, 48, 48, 48], channels=48, num_classes=11,
        init_cfg=None,  # not MMSegmentation's 0.01 for pretrained features: from scratch it stays at background for long
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', loss_weight=1.0),
            dict(type='vitzoo.ClassDiceLoss', loss_weight=3.0),
        ]))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=1200)
