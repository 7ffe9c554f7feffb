# BiFormer-S on own pictures. `vitzoo info biformer_small` says where it lies.
_base_ = '../_base_/finetune.py'
model = dict(model_name='biformer_small', checkpoint_path='checkpoints/biformer_small_in1k.pth')
