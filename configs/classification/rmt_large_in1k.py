# RMT-L: 85.5 % (paper). DeiT's recipe with EMA, whose weights are those of the published logs' best figures but for RMT-T; drop path
# 0.5 by the published code.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='rmt_large', drop_path_rate=0.5)
