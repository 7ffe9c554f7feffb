# CAS-ViT-T: 83.9 % (MODEL_ZOO.md of Tianfang-Zhang/CAS-ViT). Drop path 0.1 is that of the published dense configs.
_base_ = '../_base_/imagenet_cas_vit.py'
model = dict(model_name='cas_vit_t', drop_path_rate=0.1)
