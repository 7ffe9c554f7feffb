# CAS-ViT-XS. Drop path 0 and batch norm in eval mode, as in the published configs for detection and segmentation
# (Tianfang-Zhang/CAS-ViT). The weights lie on a share that no program can download from; `vitzoo info cas_vit_xs` says where.
channels = [48, 56, 112, 220]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/cas_vit_xs_in1k.pth')
detection = dict(model_name='cas_vit_xs', norm_eval=True, drop_path_rate=0.0, init_cfg=init_cfg)
segmentation = detection
