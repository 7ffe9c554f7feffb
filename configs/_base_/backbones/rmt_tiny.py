# RMT-T. Drop path as for the classifier, by the published configs, which mean batch norm to be in eval mode in detectors (their
# SyncBatchNorm stays in training mode all the same).
# Its third stage attends among all positions at any size, as published.
# The weights lie on a share that no program can download from; `vitzoo info rmt_tiny` says where.
channels = [64, 128, 256, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/rmt_tiny.pth')
detection = dict(model_name='rmt_tiny', drop_path_rate=0.1, norm_eval=True, init_cfg=init_cfg)
segmentation = dict(model_name='rmt_tiny', drop_path_rate=0.1, init_cfg=init_cfg)
