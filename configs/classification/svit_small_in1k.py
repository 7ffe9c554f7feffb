# SViT-S: 83.6 % (paper). DeiT's recipe with EMA by the published README, which sets drop path 0.1 (its run.sh 0.3).
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='svit_small', drop_path_rate=0.1)
