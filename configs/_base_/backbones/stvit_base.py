# STViT-R-Swin-B. Detection: configs/swin/cascade_mask_rcnn_swin_base_*.py of changsn/STViT-R-Object-Detection; padding is hidden as it was
# in training (pad_mask='published', the default).
# Segmentation: no recipe was published; drop path 0.3 is our choice, after MMSegmentation's UPerNet with Swin.
channels = [128, 256, 512, 1024]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:csncsn/STViT-R/STViT-R-Swin-B.pth')
detection = dict(model_name='stvit_base', drop_path_rate=0.3, init_cfg=init_cfg)
segmentation = dict(model_name='stvit_base', drop_path_rate=0.3, init_cfg=init_cfg)
