# CAS-ViT-S on own pictures. `vitzoo info cas_vit_s` says where it lies.
_base_ = '../_base_/finetune.py'
model = dict(model_name='cas_vit_s', checkpoint_path='checkpoints/cas_vit_s_in1k.pth', drop_path_rate=0.0)
