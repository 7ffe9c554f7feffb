# CAS-ViT at 384: 30 epochs at 5e-5, from its first step to its last, without drop path, by the README of Tianfang-Zhang/CAS-ViT; from the
# weights of 224, which `--cfg-options load_from=FILE` names. Images are warped to the size in evaluation, not cropped.
_base_ = 'imagenet_cas_vit.py'
train_dataloader = dict(dataset=dict(input_size=384))
val_dataloader = dict(dataset=dict(input_size=384, crop_pct=1.0, crop_mode='squash'))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True)]
train_cfg = dict(max_epochs=30)
