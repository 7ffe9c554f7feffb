# The same, whose tokens are clustered behind the fifth of twelve blocks: about half of them, the share of the published Segmenter on ADE20K
# (28x28 of 40x40). Nothing is learned, so that weights trained without it can be tested with it.
_base_ = './vit_small_patch14_reg4_dinov2.py'
detection = segmentation = dict(reduction=dict(method='expedite', location=4, clusters=0.7))
