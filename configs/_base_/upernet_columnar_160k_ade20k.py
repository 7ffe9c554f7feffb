# UPerNet for columnar models: a simple feature pyramid, which the backbone makes, and the optimizer of MMSegmentation's MAE, whose learning
# rate decays by 0.65 a block from the last to the first (configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py).
_base_ = './upernet_160k_ade20k.py'
model = dict(backbone=dict(drop_path_rate=0.1))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    constructor='vitzoo.LayerDecayConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay=0.65))
