# LookupViT: its recipe is not known to us, so this is DeiT's, which suits the plain ViT that it modifies. The loss is the mean of the two
# heads' by the description in the paper; train_sizes draws the compressed size of each step, for one model that serves several.
_base_ = 'imagenet_deit.py'
model = dict(separate_logits=True, train_sizes=(3, 5, 7, 10))
val_dataloader = dict(dataset=dict(crop_pct=0.9))
test_dataloader = dict(dataset=dict(crop_pct=0.9))
