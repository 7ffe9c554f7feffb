# LookupViT-S/16 on own pictures. From DeiT-S: no weights of its own were published, so it has more to learn than the others.
_base_ = '../_base_/finetune.py'
model = dict(model_name='lookupvit_small_patch16', checkpoint_path='hf-hub:timm/deit_small_patch16_224.fb_in1k')
val_dataloader = dict(dataset=dict(crop_pct=0.9))
test_dataloader = dict(dataset=dict(crop_pct=0.9))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.75))  # of ViTs, whose blocks are as many at one width
