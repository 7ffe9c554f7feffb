# RetinaNet with 48 channels on strides 8 to 64. It starts at stride 8, so the backbone gives no map at stride 4.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/digits_boxes_detection.py', '../_base_/digits.py']
model = dict(
    backbone=dict(_delete_=True, type='vitzoo.Backbone', model_name='svit_micro', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 192], out_channels=48, start_level=0, num_outs=4),
    bbox_head=dict(
        in_channels=48, feat_channels=48, stacked_convs=2, num_classes=10,
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32, 64])),
    test_cfg=dict(nms_pre=400, max_per_img=20))
