# UPerNet with timm's Swin-T on ADE20K, 160k iterations, in MMSegmentation's recipe for its own Swin-T.
_base_ = '../_base_/upernet_160k_ade20k.py'
model = dict(
    backbone=dict(
        model_name='swin_tiny_patch4_window7_224', out_norm='layer', drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/swin_tiny_patch4_window7_224.ms_in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
