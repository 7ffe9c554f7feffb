# One linear layer on the map of stride 16 instead of the mask transformer, as MMSegmentation's segmenter_vit-s_fcn.
_base_ = './segmenter_160k_ade20k.py'
model = dict(
    decode_head=dict(
        _delete_=True, type='FCNHead', in_channels=384, channels=384, num_convs=0, concat_input=False, dropout_ratio=0.0, num_classes=150,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
