# timm's ResNet, narrowed to the multiply-adds of svit_micro, for digit scenes.
channels = [24, 48, 88, 144]
detection = segmentation = classification = dict(
    model_name='resnet18', layers=(2, 2, 2, 2), channels=(24, 48, 88, 144), stem_type='deep', stem_width=16)
