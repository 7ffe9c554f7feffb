# DaViT-T: 82.8 % (paper). Drop path 0.1 is the default of the published train.py.
_base_ = '../_base_/imagenet_davit.py'
model = dict(model_name='vz_davit_tiny', drop_path_rate=0.1)
