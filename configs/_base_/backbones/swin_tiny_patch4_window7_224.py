# timm's Swin-T, with output norms and drop path as MMSegmentation has them for its own in UPerNet, and MMDetection in detectors.
channels = [96, 192, 384, 768]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/swin_tiny_patch4_window7_224.ms_in1k')
detection = dict(model_name='swin_tiny_patch4_window7_224', out_norm='layer', drop_path_rate=0.2, init_cfg=init_cfg)
segmentation = dict(model_name='swin_tiny_patch4_window7_224', out_norm='layer', drop_path_rate=0.3, init_cfg=init_cfg)
