# Mask R-CNN on COCO, 36 epochs of 8 x 2 images, short side 480 to 800 and random crops: MMDetection's 3x recipe for Swin.
_base_ = ['mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py', './vitzoo.py']
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone'))
