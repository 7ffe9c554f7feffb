# What detectors with boxes alone share on digit scenes: no map at stride 4 from the backbone, 48 channels on strides 8 to 64.
_base_ = ['./digits_detection.py', './digits.py']
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type='vitzoo.Backbone', model_name='svit_micro', out_indices=(1, 2, 3)),
    neck=dict(type='FPN', in_channels=[64, 128, 192], out_channels=48, add_extra_convs='on_output', num_outs=4))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(160, 128), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
