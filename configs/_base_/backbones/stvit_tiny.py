# STViT-R-Swin-T. Constructible with the published code, which trained none: drop path 0.2 is our choice, after MMDetection's Swin-T.
# Segmentation: no recipe was published; drop path 0.3 is our choice, after MMSegmentation's UPerNet with Swin.
# No weights were published: this trains from scratch, or set init_cfg to your own.
channels = [96, 192, 384, 768]
detection = dict(model_name='stvit_tiny', drop_path_rate=0.2)
segmentation = dict(model_name='stvit_tiny', drop_path_rate=0.3)
