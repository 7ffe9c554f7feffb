# Mask R-CNN, every width cut to what 128x160 pixels need.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/digits_detection.py', '../_base_/digits.py']
model = dict(
    backbone=dict(_delete_=True, type='vitzoo.Backbone', model_name='svit_micro'),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=48, num_outs=4),
    rpn_head=dict(
        in_channels=48, feat_channels=48,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        # one sample a bin, as dense as the maps; with MMDetection's adaptive number the backward pass takes longer on CPUs
        bbox_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        # MMDetection starts the classifier with weights of 0.01, for pretrained features; from scratch it then stays at background
        bbox_head=dict(
            in_channels=48, fc_out_channels=128, num_classes=10,
            init_cfg=[dict(type='Normal', std=0.001, override=dict(name='fc_reg'))]),
        mask_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=48, num_classes=10)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=100),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5))),
    test_cfg=dict(
        rpn=dict(nms_pre=400, max_per_img=100),
        rcnn=dict(max_per_img=20)))
train_cfg = dict(max_iters=800)
