"""Token-aware pooling in timm's vision transformers."""
import copy
import pickle

import pytest
import timm
import torch
import zoo
from timm.models.vision_transformer import ResPostBlock

from vitzoo.layers import TokenAwarePooling
from vitzoo.tap import wrap_tap


def build(name='test_vit', **kwargs):
    return wrap_tap(zoo.build(name, dynamic_img_size=True), **kwargs).eval()


@torch.inference_mode()
def test_pools_the_patches_in_front_of_norm1():
    """Against the blocks spelled out, on a map that is not square."""
    model, image = build(blocks=[0, -1]), torch.randn(2, 3, 96, 160)
    x, P = model._pos_embed(model.patch_embed(image)), model.num_prefix_tokens
    x = model.norm_pre(x)
    for block in model.blocks:
        y = x
        tap = getattr(block.norm1, 'tap', None)
        if tap is not None:
            plain = TokenAwarePooling(model.embed_dim).eval()
            plain.load_state_dict(tap.state_dict())
            y = torch.cat([x[:, :P], plain(x[:, P:].unflatten(1, (6, 10))).flatten(1, 2)], dim=1)
        norm = block.norm1
        x = x + block.ls1(block.attn(torch.nn.functional.layer_norm(y, y.shape[-1:], norm.weight, norm.bias, norm.eps)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    torch.testing.assert_close(model.forward_features(image), model.norm(x))
    assert [hasattr(block.norm1, 'tap') for block in model.blocks] == [True, *[False] * (len(model.blocks) - 2), True]


@torch.inference_mode()
def test_names_stay():
    plain = timm.create_model('test_vit')
    missing, unexpected = wrap_tap(copy.deepcopy(plain)).load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all('.norm1.tap.' in name for name in missing)


@torch.inference_mode()
def test_one_scale_changes_nothing():
    plain, image = zoo.build('test_vit'), torch.randn(1, 3, 160, 160)
    expected = plain(image)
    assert wrap_tap(plain, 1).eval()(image).equal(expected)


@torch.inference_mode()
def test_offset_keeps_a_pretrained_model():
    plain, image = zoo.build('test_vit'), torch.randn(1, 3, 160, 160)
    near, far = (wrap_tap(copy.deepcopy(plain), offset=offset).eval()(image) - plain(image) for offset in (10., 0.))
    assert near.abs().max() < 0.05 * far.abs().max()


@torch.inference_mode()
def test_copies_refer_to_themselves():
    model, image = build(), torch.randn(2, 3, 64, 96)
    expected = model(image)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.blocks[0].norm1.tap.grid is other.patch_embed.tap_grid is not model.patch_embed.tap_grid
        torch.testing.assert_close(other(image), expected)
    model(torch.randn(1, 3, 96, 64))  # leaves the copies alone
    assert other.patch_embed.tap_grid.size == (4, 6)


def test_trains():
    model = build().train()
    model(torch.randn(2, 3, 64, 96)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if '.tap.' in name)


@torch.inference_mode()
def test_eva():
    model = wrap_tap(zoo.build('eva02_tiny_patch14_224', img_size=56)).eval()
    assert model(torch.randn(1, 3, 56, 56)).isfinite().all()


def test_onnx(tmp_path):
    vitzoo = pytest.importorskip('vitzoo')
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    vitzoo.export_onnx(build(blocks=[0]), tmp_path / 'tap.onnx', (64, 96), dynamic_batch=False)  # compares with PyTorch
    assert (tmp_path / 'tap.onnx').exists()


def test_refusals():
    with pytest.raises(ValueError, match='ResNet'):
        wrap_tap(timm.create_model('resnet10t'))
    with pytest.raises(ValueError, match='ResPostBlock'):
        wrap_tap(timm.create_model('test_vit', block_fn=ResPostBlock))
    with pytest.raises(ValueError, match='blocks='):
        wrap_tap(timm.create_model('test_vit'), blocks=[99])
    model = build()
    with pytest.raises(ValueError, match='already'):
        wrap_tap(model)
    with pytest.raises(ValueError, match='patches'):
        model.blocks[0](torch.randn(1, 5, model.embed_dim))
