# DeiT's whole recipe: each image three times in a row with its own augmentation, and averaged weights for evaluation.
_base_ = 'imagenet.py'
train_dataloader = dict(sampler=dict(_delete_=True, type='vitzoo.RepeatAugSampler', num_repeats=3))
custom_hooks = [
    dict(type='vitzoo.ProgressBarHook'),
    dict(type='vitzoo.ReseedHook'),
    dict(type='EMAHook', momentum=4e-5, update_buffers=True),  # a decay of 0.99996
]
