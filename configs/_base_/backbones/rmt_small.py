# RMT-S. Drop path as for the classifier, by the published configs, which mean batch norm to be in eval mode in detectors (their
# SyncBatchNorm stays in training mode all the same).
# The weights lie on a share that no program can download from; `vitzoo info rmt_small` says where.
channels = [64, 128, 256, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/rmt_small.pth')
detection = dict(model_name='rmt_small', drop_path_rate=0.15, norm_eval=True, init_cfg=init_cfg)
segmentation = dict(model_name='rmt_small', drop_path_rate=0.15, init_cfg=init_cfg)
