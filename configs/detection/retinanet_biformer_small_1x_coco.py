# RetinaNet with BiFormer-S on COCO, 1x. The optimizer of object_detection/configs/coco/retinanet.1x.biformer_small.py in
# rayleizhu/BiFormer.
_base_ = ['../_base_/retinanet_1x_coco.py', '../_base_/backbones/biformer_small.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels[1:]))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
