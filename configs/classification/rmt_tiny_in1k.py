# RMT-T: 82.4 % (paper). DeiT's recipe with EMA, whose weights are those of the published logs' best figures but for RMT-T; drop path
# 0.1 by the published code.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='rmt_tiny', drop_path_rate=0.1)
