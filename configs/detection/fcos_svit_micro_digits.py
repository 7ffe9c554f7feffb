# FCOS with 48 channels on strides 8 to 64: distances from points, as multiples of the stride, centerness beside them.
_base_ = '../_base_/digits_boxes.py'
model = dict(
    type='FCOS',
    bbox_head=dict(
        type='FCOSHead', num_classes=10, in_channels=48, feat_channels=48, stacked_convs=2, norm_cfg=dict(type='GN', num_groups=8),
        strides=[8, 16, 32, 64], regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)),
        norm_on_bbox=True, centerness_on_reg=True, center_sampling=True, conv_bias=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0)),
    test_cfg=dict(nms_pre=400, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=20))
