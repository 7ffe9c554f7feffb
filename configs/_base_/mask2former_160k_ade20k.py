# Mask2Former on ADE20K, 160k iterations of 8 x 2 crops of 512: MMSegmentation's recipe (AdamW, 1e-4, a tenth of it for the backbone).
# Its head lives in MMDetection.
_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(_delete_=True, imports=['vitzoo.mm', 'mmdet.models'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]
sync_bn = 'torch'  # for backbones with batch norm, as BiFormer's segmentation code does
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone'))
