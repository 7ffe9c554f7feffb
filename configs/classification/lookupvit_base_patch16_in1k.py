# LookupViT-B/16.
_base_ = '../_base_/imagenet_lookupvit.py'
model = dict(model_name='lookupvit_base_patch16')
