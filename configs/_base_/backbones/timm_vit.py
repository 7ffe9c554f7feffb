# timm's plain ViT with few channels and blocks and patches of 8 pixels, for digit scenes. Its table of positions is made for these sizes.
channels = [48, 96, 96, 96]
detection = segmentation = dict(
    model_name='vit_tiny_patch16_224', embed_dim=96, depth=6, num_heads=3, patch_size=8, img_size=(128, 160))
classification = dict(detection, img_size=48)
