# The same; back on the grid each position takes the features of the nearest token.
_base_ = './timm_vit_expedite.py'
detection = segmentation = dict(recover='nearest')
