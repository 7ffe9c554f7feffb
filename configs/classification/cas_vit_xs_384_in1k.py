# CAS-ViT-XS fine-tuned at 384: 78.7 % (second file of MODEL_ZOO.md of Tianfang-Zhang/CAS-ViT).
_base_ = '../_base_/imagenet_cas_vit-384.py'
model = dict(model_name='cas_vit_xs', drop_path_rate=0.0)
