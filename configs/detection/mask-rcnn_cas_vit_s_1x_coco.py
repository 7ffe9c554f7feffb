# Mask R-CNN with CAS-ViT-S on COCO, 1x. The optimizer of detection/configs/RCViT/mask_rcnn_rcvit_s_fpn_1x_coco_bs4.py in
# Tianfang-Zhang/CAS-ViT: 2e-4 for 8 x 4 images, which is 1e-4 for 8 x 2, and weight decay 1e-4 on all parameters.
_base_ = ['../_base_/mask-rcnn_1x_coco.py', '../_base_/backbones/cas_vit_s.py']
model = dict(backbone=_base_.detection, neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
