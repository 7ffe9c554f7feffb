# SViT-B. No dense recipe was published (abstract of arXiv:2211.11167: the best are 53.9 box AP, 46.8 mask AP, 51.9 mIoU).
# Our choice: drop path 0.3, as STViT-R-Swin-B has; batch norm in eval mode in detectors, whose batches are small, as the authors keep it
# when they fine-tune at 384 and as BiFormer's detectors do.
# The weights lie on a share that no program can download from; `vitzoo info svit_base` says where.
channels = [96, 192, 384, 512]
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/stvit-base-224.pth')
detection = dict(model_name='svit_base', drop_path_rate=0.3, norm_eval=True, init_cfg=init_cfg)
segmentation = dict(model_name='svit_base', drop_path_rate=0.3, init_cfg=init_cfg)
