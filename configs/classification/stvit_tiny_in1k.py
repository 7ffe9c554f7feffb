# STViT-R-Swin-T: no accuracy was published; drop path 0.2 by its published configuration.
_base_ = '../_base_/imagenet_stvit.py'
model = dict(model_name='stvit_tiny', drop_path_rate=0.2)
