# SViT-S. No dense recipe was published (abstract of arXiv:2211.11167: the best are 53.9 box AP, 46.8 mask AP, 51.9 mIoU).
# Our choice: the classifier's drop path; batch norm in eval mode in detectors, whose batches are small, as the authors keep it when they
# fine-tune at 384 and as BiFormer's detectors do.
# The weights lie on a share that no program can download from; `vitzoo info svit_small` says where.
channels = [64, 128, 320, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/stvit-small-224.pth')
detection = dict(model_name='svit_small', drop_path_rate=0.1, norm_eval=True, init_cfg=init_cfg)
segmentation = dict(model_name='svit_small', drop_path_rate=0.1, init_cfg=init_cfg)
