# STViT-R-Swin-S. Detection: configs/swin/cascade_mask_rcnn_swin_small_*.py of changsn/STViT-R-Object-Detection; padding is hidden as it was
# in training (pad_mask='published', the default).
# Segmentation: no recipe was published; drop path 0.3 is our choice, after MMSegmentation's UPerNet with Swin.
channels = [96, 192, 384, 768]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:csncsn/STViT-R/STViT-R-Swin-S.pth')
detection = dict(model_name='stvit_small', drop_path_rate=0.2, init_cfg=init_cfg)
segmentation = dict(model_name='stvit_small', drop_path_rate=0.3, init_cfg=init_cfg)
