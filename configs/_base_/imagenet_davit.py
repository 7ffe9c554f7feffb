# DaViT: 8 x 128 images, rate 1e-3 and clipping at 1 by the README of dingmyu/davit, the rest by the defaults of its train.py: DeiT's
# numbers without repeated augmentation and EMA, and ten more epochs at the lowest rate, as timm's scripts have them. Tested with crop 0.9.
_base_ = 'imagenet.py'
val_dataloader = dict(dataset=dict(crop_pct=0.9))
test_dataloader = dict(dataset=dict(crop_pct=0.9))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=310)
