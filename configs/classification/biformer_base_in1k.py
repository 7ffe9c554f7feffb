# BiFormer-B: 84.3 % (published README). DeiT's recipe as for BiFormer-S. Its drop path is not stated; ours is twice that of S, as in the
# published Semantic FPN.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='biformer_base', drop_path_rate=0.3)
