# ATSS on COCO, 12 epochs of 8 x 2 images with a short side of 800. The backbone gives no map at stride 4, which the head would not use. The
# model is MMDetection's, the optimizer that of its Mask R-CNN with Swin.
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', './vitzoo.py']
model = dict(
    backbone=dict(_delete_=True, type='vitzoo.Backbone', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.), 'relative_position_bias_table': dict(decay_mult=0.)}))
