# SViT-L: 85.3 % (paper). DeiT's recipe with EMA by the published README, which sets drop path 0.4 for 260 epochs and 0.6 for the last 40:
# stop after epoch 260 and go on with --resume --cfg-options model.drop_path_rate=0.6.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='svit_large', drop_path_rate=0.4)
