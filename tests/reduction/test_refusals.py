"""What token reduction refuses: models and blocks that it does not know, masks, bad images; by name, and before anything changes."""
import pytest
import timm
import torch
from kinds import KINDS, SIZE, WITHOUT_CLASS_TOKEN, build, image, options, reduced
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import nn

import vitzoo
from vitzoo.reduction import METHODS


def state_of(model):
    return (type(model), [(name, type(m)) for name, m in model.named_modules()], sorted(vars(model)),
            {name: id(value) for name, value in model.state_dict(keep_vars=True).items()})


class OwnForward(Block):
    def forward(self, x, attn_mask=None, is_causal=False):
        return x


class OwnFeatures(VisionTransformer):
    def forward_features(self, x, attn_mask=None, is_causal=False):
        return super().forward_features(x.flip(-1))


def small(**kwargs):
    return timm.create_model('vit_tiny_patch16_224', **{**dict(depth=2, embed_dim=32, num_heads=2, img_size=32), **kwargs})


def patched():
    model = small()
    model.blocks[1].forward = lambda x: x
    return model


REFUSED = {
    'Beit': lambda: timm.create_model('beit_base_patch16_224', depth=1, embed_dim=32, num_heads=2),
    'NaFlexVit': lambda: timm.create_model('naflexvit_base_patch16_gap', depth=1, embed_dim=32, num_heads=2),
    'SwinTransformer': lambda: timm.create_model('swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1), embed_dim=24),
    'ResNet': lambda: timm.create_model('resnet10t'),
    'Linear': lambda: nn.Linear(3, 4),
    'blocks.0 is a ParallelScalingBlock': lambda: small(block_fn=ParallelScalingBlock),
    'blocks.0 is a ResPostBlock': lambda: small(block_fn=ResPostBlock),
    'blocks.0 is a ParallelThingsBlock': lambda: timm.create_model(
        'vit_small_patch16_18x2_224', depth=1, embed_dim=32, num_heads=2),
    'blocks.0 is a OwnForward': lambda: small(block_fn=OwnForward),
    'blocks.1 .*forward of its own': patched,
    'blocks.0.attn is a DiffAttention': lambda: small(attn_layer='diff'),
    'OwnFeatures .*forward_features': lambda: OwnFeatures(img_size=32, depth=2, embed_dim=32, num_heads=2),
    'patch_drop_rate=0.3': lambda: small(patch_drop_rate=0.3),
    'patch_drop_rate=0.25': lambda: timm.create_model(
        'vit_small_patch16_dinov3', depth=1, embed_dim=32, num_heads=2, patch_drop_rate=0.25),
    'STViTDeiT': lambda: timm.create_model('stvit_deit_micro'),
    'LookupViT': lambda: timm.create_model('lookupvit_micro'),
    'found 2': lambda: nn.ModuleList([small(), small()]),
}


@pytest.mark.parametrize('what', REFUSED)
@pytest.mark.parametrize('method', METHODS)
def test_refused_by_name_before_anything_changes(what, method):
    model = REFUSED[what]()
    before = state_of(model)
    with pytest.raises(ValueError, match=what) as e:
        vitzoo.reduce_tokens(model, method, **options(method))
    assert '\n' not in str(e.value) and len(str(e.value)) < 300
    assert state_of(model) == before


@pytest.mark.parametrize('name', ['stvit_deit_micro', 'lookupvit_micro'])
def test_our_models_that_reduce_tokens_themselves_say_so(name):
    for model in (timm.create_model(name), timm.create_model(name, features_only=True)):
        with pytest.raises(ValueError, match='tokens'):
            vitzoo.reduce_tokens(model, 'tome')


@pytest.mark.parametrize('kind', WITHOUT_CLASS_TOKEN)
@pytest.mark.parametrize('method', [method for method in METHODS if METHODS[method].needs_class_token])
def test_no_class_token(kind, method):
    for model in (build(kind), reduced(kind, 'tome')):
        before = state_of(model)
        with pytest.raises(ValueError, match='class token'):
            vitzoo.reduce_tokens(model, method, **options(method))
        assert state_of(model) == before


@pytest.mark.parametrize('kind', KINDS)
def test_masks_are_refused(kind):
    model = reduced(kind, 'tome')
    for argument in (dict(attn_mask=torch.zeros(1)), dict(is_causal=True)):
        for forward in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(ValueError, match='restore_tokens'):
                forward(image(), **argument)


@pytest.mark.parametrize('kind', ['class_token', 'dinov3'])
def test_bad_images_are_refused(kind):
    model = reduced(kind, 'tome')
    for x, message in ((image()[0], '3 dimensions'), (image()[:, :2], 'Expected 3 channels'), (image().int(), 'int32'), ('a', 'str')):
        for forward in (model, model.forward_intermediates):
            with pytest.raises(ValueError, match=message):
                forward(x)
    for argument in (dict(indices=9), dict(indices=[-4]), dict(output_fmt='NHWC')):
        with pytest.raises(ValueError, match=next(iter(argument))):
            model.forward_intermediates(image(), **argument)


def test_nothing_to_restore():
    model = build('class_token')
    assert vitzoo.restore_tokens(model) is model and type(model) is VisionTransformer
    assert SIZE == tuple(model.patch_embed.img_size)
