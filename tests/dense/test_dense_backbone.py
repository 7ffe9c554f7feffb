import pytest
import timm
import torch
import zoo
from timm.layers import LayerNorm2d
from torch import nn

from vitzoo.dense import DenseBackbone

MODELS = [*zoo.FIRST.values(), 'resnet10t', 'convnext_atto', 'swin_tiny_patch4_window7_224', 'test_efficientnet', 'pvt_v2_b0', 'test_vit',
          'deit_tiny_distilled_patch16_224', 'xcit_nano_12_p16_224']


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(*size, in_chans=3):
    return torch.rand(1, in_chans, *size)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(130, 158), (64, 96)])
def test_maps_have_ceil_of_size_by_stride(name, size):
    model = DenseBackbone(name).eval()
    with torch.inference_mode():
        maps = model(image(*size))
    assert model.strides == (4, 8, 16, 32)
    assert [m.shape for m in maps] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides, strict=True)]
    assert all(m.is_contiguous() for m in maps)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('out_indices, out_norm', [((0, 1, 2, 3), True), ((1, 2), 'layer'), ((0,), True)])
def test_every_parameter_gets_a_gradient(name, out_indices, out_norm):
    model = DenseBackbone(name, out_indices, out_norm=out_norm)
    sum((m ** 2).sum() for m in model(torch.rand(2, 3, 64, 64))).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize('name', ['convnext_atto', 'swin_tiny_patch4_window7_224', 'test_efficientnet'])
def test_maps_are_those_of_timm_s_feature_model(name):
    model = DenseBackbone(name).eval()
    torch.manual_seed(0)
    own = timm.create_model(name, features_only=True, **({'strict_img_size': False} if name.startswith('swin') else {})).eval()
    weights = {key.replace('.', '_'): value for key, value in own.state_dict().items()}  # timm flattens `stages.0` to `stages_0`
    model.model.load_state_dict({key: weights[key.replace('.', '_')] for key in model.model.state_dict()})
    x = image(64, 96)
    with torch.inference_mode():
        theirs = own(x)[-4:]
        if name.startswith('swin'):
            theirs = [m.permute(0, 3, 1, 2) for m in theirs]
        torch.testing.assert_close(model(x), list(theirs))


def test_other_input_channels():
    model = DenseBackbone('resnet10t', (0, 3), in_chans=5).eval()
    with torch.inference_mode():
        assert [m.shape[2:] for m in model(image(65, 33, in_chans=5))] == [(17, 9), (3, 2)]


def test_nothing_is_built_behind_the_last_level():
    def count(*out_indices):
        return sum(p.numel() for p in DenseBackbone('resnet10t', out_indices).parameters())
    assert count(0) < count(0, 1) == count(1) < count(2) < count(3)


def test_layer_norm_is_over_channels():
    model = DenseBackbone('convnext_atto', (0, 2), out_norm='layer').eval()
    with torch.inference_mode():
        for m in model(image(64, 64)):
            torch.testing.assert_close(m.mean(1), torch.zeros_like(m.mean(1)), atol=1e-4, rtol=0)
            torch.testing.assert_close(m.var(1, unbiased=False), torch.ones_like(m.mean(1)), atol=1e-2, rtol=0)
    assert [n for n, m in model.named_children() if n != 'body'] == ['norm0', 'norm2']


def test_published_output_norm_of_the_family_is_used(monkeypatch):
    from timm.models.resnet import ResNet
    monkeypatch.setattr(ResNet, 'dense_norm_eps', 1e-3, raising=False)
    norm = DenseBackbone('resnet10t', (2,)).norm2
    assert isinstance(norm, LayerNorm2d) and norm.eps == 1e-3
    assert isinstance(DenseBackbone('resnet10t', (2,), out_norm=False).norm2, nn.Identity)


@pytest.mark.parametrize('name, stages, frozen, free', [
    ('svit_micro', 0, ['stem'], ['stages.0']),
    ('svit_micro', 2, ['stem', 'stages.0', 'stages.1'], ['stages.2', 'stages.3']),
    ('resnet10t', 0, ['conv1', 'bn1'], ['layer1', 'layer4']),
    ('resnet10t', 2, ['conv1', 'bn1', 'layer1', 'layer2'], ['layer3', 'layer4']),
    ('convnext_atto', 0, ['stem'], ['stages.0']),
    ('convnext_atto', 1, ['stem', 'stages.0'], ['stages.1']),
    ('test_efficientnet', 1, ['conv_stem', 'bn1', 'blocks.0', 'blocks.1'], ['blocks.2']),
    ('swin_tiny_patch4_window7_224', 4, ['patch_embed', 'layers.0', 'layers.3'], []),
    ('lookupvit_micro', 0, ['patch_embed'], ['blocks.0']),
    ('lookupvit_micro', 3, ['patch_embed', 'blocks.0', 'blocks.2'], ['blocks.3']),
    ('stvit_deit_micro', 4, ['patch_embed', 'blocks.0', 'blocks.3'], ['recover']),
    ('vit_tiny_patch16_224', 1, ['patch_embed', 'blocks.2'], ['blocks.3']),
])
def test_frozen_stages(name, stages, frozen, free):
    model = DenseBackbone(name, frozen_stages=stages)
    model.train()
    for path in frozen:
        part = model.model.get_submodule(path)
        assert not any(p.requires_grad for p in part.parameters())
        assert not any(m.training for m in part.modules())
    for path in free:
        part = model.model.get_submodule(path)
        assert all(p.requires_grad for p in part.parameters())
        assert all(m.training for m in part.modules())
    if free:
        sum(m.sum() for m in model(torch.rand(2, 3, 64, 64))).backward()


def test_all_of_a_columnar_model_can_be_frozen_whatever_its_levels():
    model = DenseBackbone('test_vit', (0, 2), frozen_stages=4)
    assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == {'pyramid'}


def test_norm_eval_keeps_running_statistics():
    model = DenseBackbone('resnet10t', norm_eval=True).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    model(torch.rand(2, 3, 64, 64))
    assert before and all(torch.equal(before[n], b) for n, b in model.named_buffers())
    assert model.model.layer1.training and model.model.bn1.weight.requires_grad


@pytest.mark.parametrize('name, path', [
    ('svit_micro', 'stages.2.blocks.0'), ('lookupvit_micro', 'blocks.1'), ('convnext_atto', 'stages.2.blocks.0'),
    ('test_efficientnet', 'blocks.2.0')])
def test_checkpointing_recomputes_and_changes_no_gradient(name, path):
    plain, recomputing = DenseBackbone(name, norm_eval=True), DenseBackbone(name, norm_eval=True, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    for model in (plain, recomputing):
        calls = []
        model.model.get_submodule(path).register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        sum((m ** 2).sum() for m in model(x)).backward()
        assert len(calls) == (2 if model is recomputing else 1)
    for p, q in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize('name', ['svit_micro', 'resnet10t'])
def test_checkpoint_of_a_classifier(tmp_path, name):
    classifier = timm.create_model(name)
    torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'classifier.pth')
    model = DenseBackbone(name, (0, 1), checkpoint_path=tmp_path / 'classifier.pth')
    wanted = classifier.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in model.model.state_dict().items())


@pytest.mark.parametrize('name', ['svit_micro', 'resnet10t'])
def test_own_state_dict_loads_into_fewer_levels(name):
    full, part = DenseBackbone(name, out_norm='layer'), DenseBackbone(name, (1, 2), out_norm='layer')
    torch.nn.init.normal_(full.norm2.weight)
    report = part.load(full.state_dict())
    wanted = full.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in part.state_dict().items())
    assert len(report.loaded) == len(part.state_dict()) and not report.new and report.dropped


def test_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(timm.create_model('convnext_atto').state_dict(), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth'):
        DenseBackbone('resnet10t', checkpoint_path=tmp_path / 'other.pth')


@pytest.mark.parametrize('kwargs, message', [
    (dict(out_indices=(0, 4)), 'levels 0 to 3'),
    (dict(out_indices=(1, 0)), 'ascending'),
    (dict(out_indices=()), 'levels 0 to 3'),
    (dict(pretrained='weights.pth'), 'checkpoint_path'),
    (dict(pretrained=True, checkpoint_path='weights.pth'), 'either'),
    (dict(checkpoint_path='missing.pth'), 'missing.pth'),
    (dict(out_norm='batch'), 'out_norm'),
    (dict(frozen_stages=5), 'frozen_stages'),
    (dict(frozen_stages=2, out_indices=(0,)), 'number of stages up to 1'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DenseBackbone('resnet10t', **kwargs)


def test_unknown_names():
    with pytest.raises(ValueError, match='resnet10t'):
        DenseBackbone('resnet10tt')
    with pytest.raises(TypeError):
        DenseBackbone('resnet10t', no_such_option=1)


def test_missing_strides_are_named():
    with pytest.raises(ValueError, match=r'strides \[7, 14\]'):
        DenseBackbone('sequencer2d_s', (2,))
    with pytest.raises(ValueError, match='patch_size=16'):
        DenseBackbone('vit_small_patch14_dinov2')
    assert DenseBackbone('vit_small_patch14_dinov2', (0, 2), patch_size=16).out_channels == (96, 384)


@pytest.mark.parametrize('name', filter(zoo.is_columnar, MODELS))
def test_columnar_model_keeps_its_grid(name):
    """The level of its stride is the last map itself, but for a norm over channels that is new."""
    level = 1 if name == 'lookupvit_micro' else 2
    model, stride = DenseBackbone(name, (level,)).eval(), (4, 8, 16, 32)[level]
    assert model.strides == (stride,) and [n for n, _ in model.pyramid.named_parameters()] == ['norm.weight', 'norm.bias']
    x = image(130, 158)
    with torch.inference_mode():
        grid, = model.body(torch.nn.functional.pad(x, (0, -158 % stride, 0, -130 % stride)))
        grid = torch.nn.functional.layer_norm(grid.permute(0, 2, 3, 1), grid.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(model(x), [grid])


def test_semantic_tokens_are_recovered_to_the_image():
    """A position's map depends on the image there, not on its pooling window alone."""
    model = DenseBackbone('stvit_deit_micro', (2,)).eval()
    with torch.inference_mode():
        grid, = model(image(224, 224))
    assert model.model.recover is not None
    assert len(grid[0].flatten(1).T.unique(dim=0)) == 14 * 14


@pytest.mark.parametrize('name', ['dualtoken_vit_micro', 'visformer_tiny'])
@torch.inference_mode()
def test_levels_finer_than_the_finest_map(name):
    """Made of that map by a transposed convolution; the others are the model's own, and nothing is built for levels that nobody wants."""
    size = (224, 224) if name == 'visformer_tiny' else (99, 130)
    x, model, own = image(*size), DenseBackbone(name).eval(), DenseBackbone(name, (1, 2, 3)).eval()
    assert own.pyramid is None and own.strides == (8, 16, 32)
    assert model.strides == (4, 8, 16, 32) and model.out_channels == (own.out_channels[0] // 2, *own.out_channels)
    own.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith('pyramid.')})
    first, *others = model(x)
    assert first.shape[2:] == tuple(-(-n // 4) for n in size)
    torch.testing.assert_close(others, own(x))
    alone = DenseBackbone(name, (0, 2)).eval()
    alone.load_state_dict({key: value for key, value in model.state_dict().items() if key in alone.state_dict()})
    torch.testing.assert_close(alone(x), [first, others[1]])


def test_frozen_stages_of_a_model_that_begins_at_stride_8():
    def frozen(stages):
        model = DenseBackbone('dualtoken_vit_micro', frozen_stages=stages)
        return {name.removeprefix('body.model.').split('.blocks')[0].split('.downs')[0] for name, p in model.named_parameters()
                if not p.requires_grad} & {'stages.0', 'stages.1', 'stages.2', 'tokens'}
    assert frozen(0) == frozen(1) == {'tokens'} and frozen(2) == {'tokens', 'stages.0'} and frozen(3) == {'tokens', 'stages.0', 'stages.1'}


def test_levels_of_a_finer_grid():
    model = DenseBackbone('lookupvit_micro').eval()
    dim = model.model.embed_dim
    assert model.out_channels == (dim // 2, dim, dim, dim)
    with torch.inference_mode():
        levels = model(image(99, 130))
    assert [m.shape[2:] for m in levels] == [(25, 33), (13, 17), (7, 9), (4, 5)]
    torch.testing.assert_close(levels[3][0, :, 3, 4], levels[1][0, :, 12:, 16:].amax((1, 2)))


@pytest.mark.parametrize('options', [{}, dict(img_size=480)])
def test_model_that_rescales_its_input_is_refused(options):
    """CrossViT takes any image, and gives the maps of the one it was built for."""
    with pytest.raises(ValueError, match=f'rescales each image to {options.get("img_size", 240)}x'):
        DenseBackbone('crossvit_tiny_240', **options)


@torch.inference_mode()
def test_poolformer():
    """timm's own maps, at an image size that divides by nothing."""
    model, x = DenseBackbone('poolformer_s12').eval(), image(99, 130)
    assert model.out_channels == (64, 128, 320, 512)
    maps = model(x)
    assert [m.shape[2:] for m in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]
    padded = torch.nn.functional.pad(x, (0, 30, 0, 29))
    plain = timm.create_model('poolformer_s12', features_only=True).eval()
    plain.load_state_dict({key.replace('stages.', 'stages_'): value for key, value in model.model.state_dict().items()
                           if key.replace('stages.', 'stages_') in plain.state_dict()})
    for found, expected in zip(maps, plain(padded), strict=True):
        torch.testing.assert_close(found, expected[:, :, :found.shape[2], :found.shape[3]])


def test_model_of_one_size():
    model = DenseBackbone('mixer_s32_224', (2, 3)).eval()
    with torch.inference_mode():
        assert [m.shape[2:] for m in model(image(220, 193))] == [(14, 13), (7, 7)]
        with pytest.raises(ValueError, match='224x224 alone, got 224x256'):
            model(image(224, 256))


@pytest.mark.parametrize('x, message', [
    (torch.rand(3, 64, 64), '3 dimensions'), (torch.rand(1, 4, 64, 64), 'got 4'), (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 'uint8'),
    (torch.zeros(1, 3, 64, 64, dtype=torch.half), 'float16'), ('photo.png', 'torch.Tensor'),
], ids=['rank', 'channels', 'integers', 'halves', 'name'])
def test_bad_images(x, message):
    with pytest.raises(ValueError, match=message):
        DenseBackbone('resnet10t', (0,))(x)


def test_model_that_loses_the_grid_is_refused():
    with pytest.raises(ValueError, match='does not keep the input grid'):
        DenseBackbone('inception_v3', (0, 1))(image(96, 96))
