# The same, of whose 16x20 tokens there are 8x10 clusters behind the second block.
_base_ = './timm_dinov3.py'
detection = segmentation = dict(reduction=dict(method='expedite', location=1, clusters=(8, 10)))
