# timm's Swin, narrowed to the multiply-adds of svit_micro, for digit scenes. A classifier cuts its windows to one size, here of the crops.
channels = [24, 48, 96, 192]
detection = segmentation = dict(
    model_name='swin_tiny_patch4_window7_224', embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
classification = dict(detection, img_size=48)
