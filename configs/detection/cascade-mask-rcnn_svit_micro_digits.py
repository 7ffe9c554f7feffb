# Cascade Mask R-CNN, every width cut to what 128x160 pixels need. The box heads are those of the published detectors (convolutions and one
# linear layer, deltas for each class, GIoU loss) with one convolution.
_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', '../_base_/digits_detection.py', '../_base_/digits.py']
box_head = dict(
    type='ConvFCBBoxHead', num_shared_convs=1, num_shared_fcs=1, in_channels=48, conv_out_channels=48, fc_out_channels=128, roi_feat_size=7,
    num_classes=10, reg_class_agnostic=False, reg_decoded_bbox=True, loss_cls=dict(type='CrossEntropyLoss'),
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
    # from scratch, weights of 0.01 stay at background
    init_cfg=[dict(type='Normal', std=0.001, override=dict(name='fc_reg'))])
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.])
rcnn = dict(
    assigner=dict(type='MaxIoUAssigner', match_low_quality=False), sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5),
    mask_size=28, pos_weight=-1)
model = dict(
    backbone=dict(_delete_=True, type='vitzoo.Backbone', model_name='svit_micro'),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=48, num_outs=4),
    rpn_head=dict(
        in_channels=48, feat_channels=48,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        bbox_head=[
            dict(box_head, bbox_coder=dict(coder, target_stds=[0.1, 0.1, 0.2, 0.2])),
            dict(box_head, bbox_coder=dict(coder, target_stds=[0.05, 0.05, 0.1, 0.1])),
            dict(box_head, bbox_coder=dict(coder, target_stds=[0.033, 0.033, 0.067, 0.067]))],
        mask_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=48, num_classes=10)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=100),
        rcnn=[
            dict(rcnn, assigner=dict(rcnn['assigner'], pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5)),
            dict(rcnn, assigner=dict(rcnn['assigner'], pos_iou_thr=0.6, neg_iou_thr=0.6, min_pos_iou=0.6)),
            dict(rcnn, assigner=dict(rcnn['assigner'], pos_iou_thr=0.7, neg_iou_thr=0.7, min_pos_iou=0.7))]),
    test_cfg=dict(
        rpn=dict(nms_pre=400, max_per_img=100),
        rcnn=dict(max_per_img=20)))
train_cfg = dict(max_iters=800)
