# CAS-ViT: rate 6e-3 for 8 x 128 images, weight decay 0.05, 20 epochs of warm-up and averaged weights by the README of
# Tianfang-Zhang/CAS-ViT; the rest is DeiT's. Its sampler that draws sizes from 160 to 320 for each batch is left out: images have 224.
_base_ = 'imagenet.py'
optim_wrapper = dict(optimizer=dict(lr=6e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type='vitzoo.ProgressBarHook'),
    dict(type='vitzoo.ReseedHook'),
    dict(type='EMAHook', momentum=5e-4, update_buffers=True),  # a decay of 0.9995
]
