# RMT-L. Drop path as for the classifier, by the published configs, which mean batch norm to be in eval mode in detectors (their
# SyncBatchNorm stays in training mode all the same).
# The weights lie on a share that no program can download from; `vitzoo info rmt_large` says where.
channels = [112, 224, 448, 640]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/rmt_large.pth')
detection = dict(model_name='rmt_large', drop_path_rate=0.5, norm_eval=True, init_cfg=init_cfg)
segmentation = dict(model_name='rmt_large', drop_path_rate=0.5, init_cfg=init_cfg)
