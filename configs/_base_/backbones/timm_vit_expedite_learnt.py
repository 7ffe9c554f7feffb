# The same; back on the grid learnt queries attend to the tokens that are left.
_base_ = './timm_vit_expedite.py'
detection = segmentation = dict(recover='learnt')
