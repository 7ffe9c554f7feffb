# timm's DINOv2-S with registers, its patches of 14 pixels resampled to 16: for the recipes of columnar models. Drop path as in ViTDet.
channels = [96, 192, 384, 384]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch14_reg4_dinov2.lvd142m')
detection = segmentation = dict(
    model_name='vit_small_patch14_reg4_dinov2', patch_size=16, drop_path_rate=0.1, init_cfg=init_cfg)
