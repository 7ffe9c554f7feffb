# DaViT-T. Drop path as in mmdet/configs/davit_maskrcnn_3x_coco.py and mmseg/configs/upernet_davit_512x512_160k_ade20k.py of dingmyu/davit.
channels = [96, 192, 384, 768]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/davit_tiny.msft_in1k')
detection = dict(model_name='vz_davit_tiny', drop_path_rate=0.2, init_cfg=init_cfg)
segmentation = dict(model_name='vz_davit_tiny', drop_path_rate=0.3, init_cfg=init_cfg)
