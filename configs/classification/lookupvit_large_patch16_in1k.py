# LookupViT-L/16.
_base_ = '../_base_/imagenet_lookupvit.py'
model = dict(model_name='lookupvit_large_patch16')
