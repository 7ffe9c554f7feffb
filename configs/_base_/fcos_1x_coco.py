# FCOS on COCO, 12 epochs of 8 x 2 images with a short side of 800. The backbone gives no map at stride 4, which the head would not use. The
# model is MMDetection's (centre sampling, distances as multiples of the stride, GIoU loss), with pixels as the backbones see them; the
# optimizer that of its Mask R-CNN with Swin.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py', './vitzoo.py']
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(_delete_=True, type='vitzoo.Backbone', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        _delete_=True, custom_keys={'norm': dict(decay_mult=0.), 'relative_position_bias_table': dict(decay_mult=0.)}))
