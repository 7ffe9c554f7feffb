# timm's DeiT-S, a plain ViT: for the recipes mask-rcnn_columnar_3x_coco and upernet_columnar_160k_ade20k. Drop path as in ViTDet.
channels = [96, 192, 384, 384]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/deit_small_patch16_224.fb_in1k')
detection = segmentation = dict(model_name='deit_small_patch16_224', drop_path_rate=0.1, init_cfg=init_cfg)
