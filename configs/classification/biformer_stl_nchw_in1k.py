# BiFormer-STL, later generation: 82.7 % (published README). DeiT's recipe; 8 x 128 images and drop path 0.1 by scripts/train.sh of
# rayleizhu/BiFormer.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='biformer_stl_nchw', drop_path_rate=0.1)
