# Semantic FPN with timm's PoolFormer-S12 on ADE20K, 40k iterations of 8 x 4 crops of 512, the images of 80k iterations on 4 GPUs. Schedule
# as in segmentation/configs/sem_fpn/PoolFormer/fpn_poolformer_s12_ade20k_40k.py of sail-sg/poolformer: AdamW, 2e-4, weight decay 1e-4, and
# a polynomial without warm-up.
_base_ = ['../_base_/fpn_80k_ade20k.py', '../_base_/backbones/poolformer_s12.py']
model = dict(backbone=_base_.segmentation, neck=dict(in_channels=_base_.channels))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, by_epoch=False, begin=0, end=40000)]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
