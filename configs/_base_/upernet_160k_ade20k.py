# UPerNet with an auxiliary head on ADE20K, 160k iterations of 8 x 2 crops of 512: MMSegmentation's recipe for Swin (AdamW, 6e-5, weight
# decay 0.01 except on norms and position tables).
_base_ = ['mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', './vitzoo.py']
sync_bn = 'torch'  # for backbones with batch norm, as BiFormer's segmentation code does; the heads' is synchronised anyway
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone'))
auto_scale_lr = dict(enable=False, base_batch_size=16)
