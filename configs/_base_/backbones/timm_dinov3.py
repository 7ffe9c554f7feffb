# timm's DINOv3, a ViT with registers and rotary positions, with few channels and blocks and patches of 8 pixels, for digit scenes.
channels = [48, 96, 96, 96]
detection = segmentation = classification = dict(
    model_name='vit_small_patch16_dinov3', embed_dim=96, depth=6, num_heads=3, patch_size=8)
