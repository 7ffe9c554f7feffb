# BiFormer-S: 83.8 % (published README, which gives the command: 8 x 128 images, drop path 0.15, the rest as in DeiT).
# The paper also trains with token labels, for which no code was published.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='biformer_small', drop_path_rate=0.15)
