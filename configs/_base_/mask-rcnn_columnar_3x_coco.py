# Mask R-CNN 3x for columnar models in the manner of ViTDet (arXiv:2203.16527; detectron2, projects/ViTDet): a simple feature pyramid, which
# the backbone makes, drop path 0.1 and a learning rate that decays by 0.7 a block from the last to the first. Our choice: MMDetection's 3x
# schedule instead of 100 epochs, and weight decay 0.05.
_base_ = './mask-rcnn_3x_coco.py'
model = dict(backbone=dict(drop_path_rate=0.1))
optim_wrapper = dict(constructor='vitzoo.LayerDecayConstructor', paramwise_cfg=dict(_delete_=True, layer_decay=0.7))
