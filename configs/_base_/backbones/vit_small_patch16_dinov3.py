# timm's DINOv3-S: for the recipes of columnar models. Drop path as in ViTDet.
channels = [96, 192, 384, 384]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/vit_small_patch16_dinov3.lvd1689m')
detection = segmentation = dict(
    model_name='vit_small_patch16_dinov3', drop_path_rate=0.1, init_cfg=init_cfg)
