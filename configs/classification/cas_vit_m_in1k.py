# CAS-ViT-M: 82.8 % (MODEL_ZOO.md of Tianfang-Zhang/CAS-ViT). Drop path 0.1 by the README.
_base_ = '../_base_/imagenet_cas_vit.py'
model = dict(model_name='cas_vit_m', drop_path_rate=0.1)
