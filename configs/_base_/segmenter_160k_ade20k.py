# Segmenter with the mask transformer (arXiv:2105.05633) on the map of stride 16, on ADE20K, 160k iterations of 8 x 2 crops of 512, tested
# on windows. The head is MMSegmentation's for ViT-S; the optimizer that of our UPerNet for columnar models instead of SGD.
_base_ = ['mmseg::segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py', './vitzoo.py']
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    pretrained=None,
    backbone=dict(_delete_=True, type='vitzoo.Backbone', out_indices=(2,), drop_path_rate=0.1))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999)),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay=0.65))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
