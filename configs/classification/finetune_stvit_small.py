# STViT-R-Swin-S on own pictures. At 224x224 it runs the form that the file was trained in.
_base_ = '../_base_/finetune.py'
model = dict(model_name='stvit_small', checkpoint_path='hf-hub:csncsn/STViT-R/STViT-R-Swin-S.pth')
