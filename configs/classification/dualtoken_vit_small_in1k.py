# DualToken-ViT-S, a reconstruction. Its recipe is not known to us; this is the one that the published families share, without drop path.
_base_ = '../_base_/imagenet.py'
model = dict(model_name='dualtoken_vit_small', drop_path_rate=0.0)
