# BiFormer-T: 81.4 % (published README). DeiT's recipe (configs/train_args.yaml of rayleizhu/BiFormer) on 8 x 128 images; drop path 0.1 is
# that file's, with which the author agrees in issue 32.
_base_ = '../_base_/imagenet_deit.py'
model = dict(model_name='biformer_tiny', drop_path_rate=0.1)
