# CAS-ViT-S fine-tuned at 384: 81.1 % (second file of MODEL_ZOO.md of Tianfang-Zhang/CAS-ViT).
_base_ = '../_base_/imagenet_cas_vit-384.py'
model = dict(model_name='cas_vit_s', drop_path_rate=0.0)
