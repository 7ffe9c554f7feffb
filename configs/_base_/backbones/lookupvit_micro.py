# The micro LookupViT on digit scenes of 128x160 and their crops of 48: its table of positions is made for these sizes, and of the 16x20
# lookup tokens of a scene it has 8x10 compressed ones.
channels = [64, 128, 128, 128]
detection = segmentation = dict(model_name='lookupvit_micro', img_size=(128, 160), compressed_size=(8, 10))
classification = dict(model_name='lookupvit_micro', img_size=48)
