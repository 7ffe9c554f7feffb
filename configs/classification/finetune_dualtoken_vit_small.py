# DualToken-ViT-S on own pictures. From a training of your own by dualtoken_vit_small_in1k.py: no weights were published.
_base_ = '../_base_/finetune.py'
model = dict(model_name='dualtoken_vit_small', checkpoint_path='work_dirs/dualtoken_vit_small_in1k/epoch_300.pth')
