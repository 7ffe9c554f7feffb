# Mask R-CNN with the micro SViT on small pictures of your own, which `own_data` names (docs/own_data.md); until it does, on digit scenes.
# Minutes on a CPU, to see that data are right before a large model gets them. Pictures are brought into 160x128.
_base_ = './mask-rcnn_svit_micro_digits.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(160, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=300)
