# STViT-R-Swin-B: 83.2 % (published README); drop path 0.4 by the log.
_base_ = '../_base_/imagenet_stvit.py'
model = dict(model_name='stvit_base', drop_path_rate=0.4)
