# STViT-DeiT-S, columnar: for the recipes mask-rcnn_columnar_3x_coco and upernet_columnar_160k_ade20k. Drop path as in ViTDet.
# No weights were published (`vitzoo info stvit_deit_small` tells more): this trains from scratch, or set init_cfg to your own.
channels = [96, 192, 384, 384]
detection = segmentation = dict(model_name='stvit_deit_small', drop_path_rate=0.1)
