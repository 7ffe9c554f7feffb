# BiFormer-T, as the published larger ones, with a drop path of our choice: 16 x 16 regions and batch norm in eval mode in detectors, 8 x 8
# regions and UPerNet's drop path in segmentors (configs in object_detection and semantic_segmentation of rayleizhu/BiFormer; ImageNet
# weights have 7 x 7, no parameter depends on it).
# The weights lie on a share that no program can download from; `vitzoo info biformer_tiny` says where.
channels = [64, 128, 256, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/biformer_tiny_in1k.pth')
detection = dict(model_name='biformer_tiny', n_win=16, norm_eval=True, drop_path_rate=0.1, init_cfg=init_cfg)
segmentation = dict(model_name='biformer_tiny', n_win=8, drop_path_rate=0.2, init_cfg=init_cfg)
