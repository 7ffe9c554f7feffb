# STViT-R-Swin: Swin's recipe, by the published logs: 20 epochs of warm-up, rate 1e-3 at a batch of 1024 (16 x 64), clipping at 5, neither
# repeated augmentation nor averaged weights, apex O1. The logs do not tell where the warm-up starts. It tests with crop 0.875.
_base_ = 'imagenet.py'
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, convert_to_iter_based=True),
]
