# SViT-B: 84.8 % (paper). DeiT's recipe with EMA and drop path 0.4 by the published README.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='svit_base', drop_path_rate=0.4)
