# Deformable DETR with four scales on COCO, 50 epochs of 16 x 2 images: MMDetection's recipe (AdamW, 2e-4, a tenth of it for the backbone).
_base_ = ['mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', './vitzoo.py']
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone', out_indices=(1, 2, 3)))
