# DaViT-S on own pictures.
_base_ = '../_base_/finetune.py'
model = dict(model_name='vz_davit_small', checkpoint_path='hf-hub:timm/davit_small.msft_in1k')
val_dataloader = dict(dataset=dict(crop_pct=0.95))
test_dataloader = dict(dataset=dict(crop_pct=0.95))
