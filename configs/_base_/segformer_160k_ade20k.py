# The head of SegFormer on ADE20K, 160k iterations of 8 x 2 crops of 512: MMSegmentation's recipe (AdamW, 6e-5, ten times that for the
# head, weight decay 0.01 except on norms and position tables).
_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', './vitzoo.py']
sync_bn = 'torch'  # for backbones with batch norm, as BiFormer's segmentation code does; the heads' is synchronised anyway
model = dict(backbone=dict(_delete_=True, type='vitzoo.Backbone'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'relative_position_bias_table': dict(decay_mult=0.)}))
auto_scale_lr = dict(enable=False, base_batch_size=16)
