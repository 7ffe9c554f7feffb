# DaViT-B. Published recipes name the tiny size only. Drop path is our choice: of detectors 0.3, after STViT-R-Swin-B, of segmentors the
# published one of the tiny size.
channels = [128, 256, 512, 1024]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/davit_base.msft_in1k')
detection = dict(model_name='vz_davit_base', drop_path_rate=0.3, init_cfg=init_cfg)
segmentation = dict(model_name='vz_davit_base', drop_path_rate=0.3, init_cfg=init_cfg)
