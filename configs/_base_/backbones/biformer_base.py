# BiFormer-B, as published: 16 x 16 regions and batch norm in eval mode in detectors, 8 x 8 regions and UPerNet's drop path in segmentors
# (configs in object_detection and semantic_segmentation of rayleizhu/BiFormer; ImageNet weights have 7 x 7, no parameter depends on it).
# The weights lie on a share that no program can download from; `vitzoo info biformer_base` says where.
channels = [96, 192, 384, 768]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/biformer_base_in1k.pth')
detection = dict(model_name='biformer_base', n_win=16, norm_eval=True, drop_path_rate=0.3, init_cfg=init_cfg)
segmentation = dict(model_name='biformer_base', n_win=8, drop_path_rate=0.4, init_cfg=init_cfg)
