# RetinaNet with DaViT-B on COCO, 1x. The recipe of mmdet/configs/davit_retinanet_1x_coco.py of dingmyu/davit: multi-scale crops in 1x too.
_base_ = ['../_base_/retinanet_ms-1x_coco.py', '../_base_/backbones/vz_davit_base.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels[1:]))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))  # weight decay on all parameters, as published
