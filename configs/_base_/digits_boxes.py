# What detectors with boxes alone share on digit scenes: no map at stride 4 from the backbone, 48 channels on strides 8 to 64.
_base_ = ['./digits_boxes_detection.py', './digits.py']
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type='vitzoo.Backbone', model_name='svit_micro', out_indices=(1, 2, 3)),
    neck=dict(type='FPN', in_channels=[64, 128, 192], out_channels=48, add_extra_convs='on_output', num_outs=4))
