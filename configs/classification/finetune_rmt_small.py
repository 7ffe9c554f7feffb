# RMT-S on own pictures. `vitzoo info rmt_small` says where it lies.
_base_ = '../_base_/finetune.py'
model = dict(model_name='rmt_small', checkpoint_path='checkpoints/rmt_small.pth')
