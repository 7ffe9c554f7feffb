# timm's ConvNeXt-T. Drop path 0.4 is our choice, after the 3x recipe of MMDetection.
channels = [96, 192, 384, 768]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/convnext_tiny.fb_in1k')
detection = segmentation = dict(model_name='convnext_tiny', drop_path_rate=0.4, init_cfg=init_cfg)
