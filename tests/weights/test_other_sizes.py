"""A model's own file, and a foreign ViT's, at another image size, number of compressed tokens or channels: one rule by every door."""
import pytest
import timm
import torch
import zoo
from torch import nn

import vitzoo
from vitzoo.dense import DenseBackbone

COLUMNAR = [name for name in zoo.MICRO if hasattr(timm.create_model(name), 'position_tables')]
SIZE = 96, 160


@pytest.fixture(params=COLUMNAR)
def name(request):
    return request.param


def through(door, name, state, path, **options):
    """A model of the options with the weights of `state`, by one of the ways in."""
    torch.save(state, path)
    if door == 'load_checkpoint':
        model = timm.create_model(name, **options)
        report = vitzoo.load_checkpoint(model, path)
        assert {'pos_embed'} <= set(report.adapted) <= {'pos_embed', 'pos_compressed'} and not report.new and not report.dropped
        assert report.to_dict()['adapted'] == report.adapted and f'{len(report.adapted)} adapted' in str(report)
    elif door == "timm's file":
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **options)
    elif door == "timm's state dict":
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(state_dict=state), **options)
    elif door == 'DenseBackbone':
        model = DenseBackbone(name, checkpoint_path=path, **options).model
    else:
        pytest.importorskip('mmengine')
        from mmengine.runner import load_checkpoint

        from vitzoo.mm import Backbone
        backbone = Backbone(name, **options)
        load_checkpoint(backbone, str(path))
        model = backbone.model
    return model.eval()


@pytest.mark.parametrize('door', ['load_checkpoint', "timm's file", "timm's state dict", 'DenseBackbone', 'mmengine'])
def test_positions_are_resampled(name, door, tmp_path):
    """As the forward resamples them, so that the same images give the same features."""
    source = zoo.build(name)
    nn.init.normal_(source.pos_embed)
    model, x = through(door, name, source.state_dict(), tmp_path / 'file.pth', img_size=SIZE), torch.randn(2, 3, *SIZE)
    assert model.pos_embed.shape[1] * 224 ** 2 == source.pos_embed.shape[1] * SIZE[0] * SIZE[1]
    with torch.no_grad():
        found, expected = (m.forward_intermediates(x, [0, 1], intermediates_only=True) for m in (model, source))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('size', [(48, 80), (192, 320), (160, 160)])
def test_positions_of_an_oblong_image(name, size):
    """The file does not say its grid: a square one, or one with the sides of the model's."""
    source, model, x = zoo.build(name, img_size=SIZE), zoo.build(name, img_size=size), torch.randn(1, 3, *size)
    nn.init.normal_(source.pos_embed)
    if size[0] == size[1]:
        with pytest.raises(ValueError, match=r'pos_embed: \(1, \d+, 128\) in the file, \(1, \d+, 128\) in the model'):
            vitzoo.load_checkpoint(model, source.state_dict())
        return
    assert 'pos_embed' in vitzoo.load_checkpoint(model, source.state_dict()).adapted
    with torch.no_grad():
        assert torch.equal(model(x), source(x))


@pytest.mark.parametrize('size', [3, 7, (4, 6)])
def test_number_of_compressed_tokens(size, tmp_path):
    source, x = zoo.build('lookupvit_micro'), torch.randn(2, 3, 64, 64)
    model = zoo.build('lookupvit_micro', compressed_size=size)
    assert vitzoo.load_checkpoint(model, source.state_dict()).adapted == ['pos_compressed']
    source.set_compressed_size(size)
    with torch.no_grad():
        assert torch.equal(model(x), source(x))
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)  # the number is part of what is saved
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert again.compressed_size == source.compressed_size
    with torch.no_grad():
        assert torch.equal(again(x), source(x))


def test_positions_of_timm_s_models(tmp_path):
    for name, prefix in ('test_vit', 1), ('deit_tiny_distilled_patch16_224', 2):
        source, model = timm.create_model(name), timm.create_model(name, img_size=96)
        nn.init.normal_(source.pos_embed)
        assert vitzoo.load_checkpoint(model, source.state_dict()).adapted == ['pos_embed']
        assert torch.equal(model.pos_embed[:, :prefix], source.pos_embed[:, :prefix])
        expected = timm.create_model(name, pretrained=True, img_size=96, pretrained_cfg_overlay=dict(state_dict=source.state_dict()))
        assert torch.equal(model.pos_embed, expected.pos_embed)


@pytest.mark.parametrize('name', ['test_vit', 'vit_small_patch16_dinov3'])
def test_patches_of_timm_s_models(name):
    """Of 16 pixels, for a model of 8, with other positions and in one channel at the same time."""
    options = dict(embed_dim=32, depth=2, num_heads=2)
    source = timm.create_model(name, img_size=96, **options).state_dict()
    options |= dict(img_size=(64, 96), patch_size=8, in_chans=1)
    model = timm.create_model(name, **options)
    report = vitzoo.load_checkpoint(model, source)
    assert 'patch_embed.proj.weight' in report.adapted and not report.new and not report.dropped
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(state_dict=source), **options)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())


def test_patches_too_large_to_resample_are_refused():
    state = timm.create_model('test_vit', patch_size=80, img_size=160).state_dict()
    with pytest.raises(ValueError, match='patch_embed.proj.weight.* 80, 80'):
        vitzoo.load_checkpoint(timm.create_model('test_vit', img_size=32), state)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('name', [*zoo.MICRO, 'lookupvit_micro patch', 'lookupvit_micro conv'])
def test_image_channels(name, channels):
    name, _, stem = name.partition(' ')
    options = dict(stem=stem) if stem else {}
    source, model = zoo.build(name, **options), zoo.build(name, in_chans=channels, **options)
    report = vitzoo.load_checkpoint(model, source.state_dict())
    assert len(report.adapted) == 1 and not report.new and not report.dropped
    expected = timm.create_model(
        name, pretrained=True, in_chans=channels, pretrained_cfg_overlay=dict(state_dict=source.state_dict()), **options)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())


def test_a_plain_vit_as_a_start_is_resampled_by_the_same_rule():
    vit, model = timm.create_model('test_vit', embed_dim=128, depth=6, num_heads=4), timm.create_model('stvit_deit_micro', img_size=96)
    nn.init.normal_(vit.pos_embed)
    report = vitzoo.load_checkpoint(model, vit.state_dict(), reset_head=True, strict=False)
    assert 'pos_embed' in report.adapted and 'pos_embed[:, 0]' in report.dropped
    resized = timm.layers.resample_abs_pos_embed(vit.pos_embed, [6, 6])[:, 1:]
    torch.testing.assert_close(model.pos_embed, resized)
