# STViT-R-Swin-S: 82.7 % (published README); drop path 0.3 by the log.
_base_ = '../_base_/imagenet_stvit.py'
model = dict(model_name='stvit_small', drop_path_rate=0.3)
