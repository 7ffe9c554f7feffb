# DaViT-S: 84.2 % (paper). Drop path 0.1 is the default of the published train.py; the README gives no other for this size.
_base_ = '../_base_/imagenet_davit.py'
model = dict(model_name='vz_davit_small', drop_path_rate=0.1)
