# CAS-ViT-T. Drop path 0.1 and batch norm in eval mode, as in the published configs for detection and segmentation
# (Tianfang-Zhang/CAS-ViT). The weights lie on a share that no program can download from; `vitzoo info cas_vit_t` says where.
channels = [96, 128, 256, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/cas_vit_t_in1k.pth')
detection = dict(model_name='cas_vit_t', norm_eval=True, drop_path_rate=0.1, init_cfg=init_cfg)
segmentation = detection
