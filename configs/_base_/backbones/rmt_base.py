# RMT-B. Drop path as for the classifier, by the published configs, which mean batch norm to be in eval mode in detectors (their
# SyncBatchNorm stays in training mode all the same).
# The weights lie on a share that no program can download from; `vitzoo info rmt_base` says where.
channels = [80, 160, 320, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/rmt_base.pth')
detection = dict(model_name='rmt_base', drop_path_rate=0.4, norm_eval=True, init_cfg=init_cfg)
segmentation = dict(model_name='rmt_base', drop_path_rate=0.4, init_cfg=init_cfg)
