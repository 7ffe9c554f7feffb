# UPerNet with 48 channels, without the auxiliary head. The losses are those of the Semantic FPN recipe.
_base_ = ['mmseg::_base_/models/upernet_swin.py', '../_base_/digits_segmentation.py', '../_base_/digits.py']
model = dict(
    data_preprocessor=dict(size=(128, 160)),
    backbone=dict(_delete_=True, type='vitzoo.Backbone', model_name='svit_micro'),
    decode_head=dict(
        in_channels=[32, 64, 128, 192], channels=48, num_classes=11,
        init_cfg=None,  # not MMSegmentation's 0.01 for pretrained features: from scratch it stays at background for long
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', loss_weight=1.0),
            dict(type='vitzoo.ClassDiceLoss', loss_weight=3.0),
        ]),
    auxiliary_head=None)
train_dataloader = dict(batch_size=4)  # twice the steps of batches of 8 in the same time, which weighs more
train_cfg = dict(max_iters=1200)
