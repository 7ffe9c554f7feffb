# The same, which behind the attention of the second block keeps 80 of its 320 tokens and fuses the others into one.
_base_ = './timm_vit.py'
detection = segmentation = dict(reduction=dict(method='evit', locations=(1,), keep_rate=0.25))
