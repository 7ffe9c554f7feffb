# Segmenter with timm's DeiT-S, a plain ViT, on ADE20K, 160k iterations.
_base_ = '../_base_/segmenter_160k_ade20k.py'
model = dict(
    backbone=dict(
        model_name='deit_small_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/deit_small_patch16_224.fb_in1k')))
