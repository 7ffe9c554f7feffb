# Mask R-CNN on COCO, 12 epochs of 8 x 2 images with a short side of 800: MMDetection's recipe for Swin (AdamW, 1e-4, weight decay 0.05
# except on norms and position tables).
_base_ = ['mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', './vitzoo.py']
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone'))
