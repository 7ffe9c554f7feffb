# SViT-S on own pictures. `vitzoo info svit_small` says where it lies.
_base_ = '../_base_/finetune.py'
model = dict(model_name='svit_small', checkpoint_path='checkpoints/stvit-small-224.pth')
