# CAS-ViT-T fine-tuned at 384: 84.1 % (second file of MODEL_ZOO.md of Tianfang-Zhang/CAS-ViT).
_base_ = '../_base_/imagenet_cas_vit-384.py'
model = dict(model_name='cas_vit_t', drop_path_rate=0.0)
