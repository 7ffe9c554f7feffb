# UPerNet with 48 channels, without the auxiliary head.
_base_ = ['mmseg::_base_/models/upernet_swin.py', '../_base_/digits_segmentation.py', '../_base_/digits.py']
model = dict(
    # not the published deviation of 0.02, which is small for 32 to 192 channels and makes learning slow
    init_cfg=dict(type='Xavier', layer='Linear', distribution='uniform'),
    data_preprocessor=dict(size=(128, 160)),
    backbone=dict(_delete_=True, type='vitzoo.Backbone', model_name='svit_micro'),
    decode_head=dict(
        in_channels=[32, 64, 128, 192], channels=48, num_classes=11,
        init_cfg=None,  # not MMSegmentation's 0.01 for pretrained features: from scratch it stays at background for long
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', loss_weight=1.0),
            dict(type='vitzoo.ClassDiceLoss', loss_weight=1.0),
        ]),
    auxiliary_head=None)
train_dataloader = dict(batch_size=4)  # twice the steps of batches of 8 in the same time, which weighs more
# a short memory of squared gradients and a longer warm-up, without which some backbones do not bear this rate
optim_wrapper = dict(optimizer=dict(lr=2e-3, betas=(0.9, 0.95)))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    # straight to zero: of few iterations, the last third of a cosine is too slow to learn much
    dict(type='PolyLR', power=1, by_epoch=False, begin=0, eta_min=0),
]
train_cfg = dict(max_iters=1300)
