# Deformable DETR with 48 channels, four scales from stride 8, two layers each and 60 queries.
_base_ = '../_base_/digits_boxes.py'
model = dict(
    type='DeformableDETR',
    num_queries=60,
    num_feature_levels=4,
    neck=dict(
        _delete_=True, type='ChannelMapper', in_channels=[64, 128, 192], kernel_size=1, out_channels=48, act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=8), num_outs=4),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=48, num_heads=4, batch_first=True),
            ffn_cfg=dict(embed_dims=48, feedforward_channels=96, ffn_drop=0.1))),
    decoder=dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=48, num_heads=4, dropout=0.1, batch_first=True),
            cross_attn_cfg=dict(embed_dims=48, num_heads=4, batch_first=True),
            ffn_cfg=dict(embed_dims=48, feedforward_channels=96, ffn_drop=0.1)),
        post_norm_cfg=None),
    positional_encoding=dict(num_feats=24, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='DeformableDETRHead', num_classes=10, embed_dims=48, sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=[
        dict(type='FocalLossCost', weight=2.0), dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0)])),
    test_cfg=dict(max_per_img=20))
train_cfg = dict(max_iters=800)
