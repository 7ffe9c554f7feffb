# timm's PoolFormer-S12. The published dense code normalises each map by a GroupNorm; the LayerNorm here is our choice. No drop path, as in
# detection/configs and segmentation/configs of sail-sg/poolformer.
channels = [64, 128, 320, 512]
init_cfg = dict(type='Pretrained', checkpoint='hf-hub:timm/poolformer_s12.sail_in1k')
detection = segmentation = dict(model_name='poolformer_s12', out_norm='layer', init_cfg=init_cfg)
