# CAS-ViT-S: 80.9 % (MODEL_ZOO.md of Tianfang-Zhang/CAS-ViT). No drop path, as in the published dense configs.
_base_ = '../_base_/imagenet_cas_vit.py'
model = dict(model_name='cas_vit_s', drop_path_rate=0.0)
