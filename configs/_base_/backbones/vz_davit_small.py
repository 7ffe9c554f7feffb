# DaViT-S. Published recipes name the tiny size only. Drop path is our choice: of detectors 0.2, after STViT-R-Swin-S, of segmentors the
# published one of the tiny size.
channels = [96, 192, 384, 768]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/davit_small.msft_in1k')
detection = dict(model_name='vz_davit_small', drop_path_rate=0.2, init_cfg=init_cfg)
segmentation = dict(model_name='vz_davit_small', drop_path_rate=0.3, init_cfg=init_cfg)
