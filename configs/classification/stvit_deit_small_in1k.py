# STViT-DeiT-S with 16 semantic tokens: 79.8 % (paper; nobody has trained this reconstruction). From scratch, 300 epochs, batch 1024, no
# distillation by the paper, the rest as DeiT.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='stvit_deit_small')
val_dataloader = dict(dataset=dict(crop_pct=0.9))
test_dataloader = dict(dataset=dict(crop_pct=0.9))
