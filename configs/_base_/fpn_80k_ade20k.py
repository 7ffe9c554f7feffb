# Semantic FPN on ADE20K, 80k iterations of 8 x 4 crops of 512: the recipe of semantic_segmentation/configs/ade20k/sfpn.biformer_*.py in
# rayleizhu/BiFormer, which took it from UniFormer (AdamW, 2e-4, weight decay 1e-4, warm-up and cosine).
_base_ = [
    'mmseg::_base_/models/fpn_r50.py', 'mmseg::_base_/datasets/ade20k.py', 'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_80k.py', './vitzoo.py',
]
sync_bn = 'torch'  # for backbones with batch norm, as BiFormer's segmentation code does; the heads' is synchronised anyway
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type='vitzoo.Backbone'),
    decode_head=dict(num_classes=150))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=0, end=80000),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
