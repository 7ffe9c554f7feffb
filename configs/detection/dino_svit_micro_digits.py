# DINO with two layers each and 60 queries. Its 256 channels cannot be fewer, as MMDetection encodes boxes for so many.
_base_ = './deformable-detr_svit_micro_digits.py'
attention = dict(embed_dims=256, num_heads=4, dropout=0.0)
ffn = dict(embed_dims=256, feedforward_channels=256, ffn_drop=0.0)
model = dict(
    type='DINO',
    with_box_refine=True,
    as_two_stage=True,
    neck=dict(out_channels=256),
    encoder=dict(layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=128, offset=0.0, temperature=20),
    bbox_head=dict(type='DINOHead', embed_dims=256, loss_cls=dict(loss_weight=1.0)),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=20)))
