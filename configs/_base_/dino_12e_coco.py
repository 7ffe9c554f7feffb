# DINO with four scales on COCO, 12 epochs of 8 x 2 images: MMDetection's recipe (AdamW, 1e-4, a tenth of it for the backbone).
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', './vitzoo.py']
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone', out_indices=(1, 2, 3)))
