"""Attention spelled out is what the fused one computes, in every model; timm's AttentionExtract finds its maps."""
import pytest
import timm
import torch
import zoo
from timm.layers import set_fused_attn
from timm.utils import AttentionExtract
from torch import nn

from vitzoo.layers import attend, attend_unscaled, join_heads, split_heads, split_qkv


@pytest.fixture
def spelled_out():
    set_fused_attn(False)
    yield
    set_fused_attn(True)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('scale', [None, 0.1])
def test_spelled_out_is_the_same(masked, scale):
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.randn(5, 7).masked_fill(torch.rand(5, 7) < 0.2, -torch.inf) if masked else None
    fused, plain = (attend(q, k, v, mask, scale, drop=nn.Dropout(0.), fused=fused) for fused in (True, False))
    torch.testing.assert_close(plain, fused)


@pytest.mark.parametrize('bias', [False, True])
def test_projections_apart_are_the_same(bias):
    qkv, proj, x, heads = nn.Linear(12, 36, bias=bias), nn.Linear(12, 12), torch.randn(2, 5, 12), 3
    q, k, v = (split_heads(y, heads) for y in qkv(x).chunk(3, 2))
    expected = proj(join_heads(attend(q, k, v, drop=nn.Identity(), fused=True)))
    *layers, proj = split_qkv([qkv], proj, heads)
    q, k, v = (split_heads(layer(x), heads) for layer in layers)
    torch.testing.assert_close(proj(join_heads(attend_unscaled(q, k, v))), expected)
    assert layers[1].bias is None and layers[2].bias is None


def test_maps_are_dropped_in_training_alone():
    q = torch.randn(1, 1, 4, 8)
    drop = nn.Dropout(0.99)
    for fused in (True, False):
        kept = attend(q, q, q, drop=drop.eval(), fused=fused)
        torch.testing.assert_close(kept, attend(q, q, q, drop=nn.Dropout(0.), fused=True))
        assert not torch.allclose(attend(q, q, q, drop=drop.train(), fused=fused), kept)


@pytest.mark.parametrize('name', filter(zoo.attends, zoo.MICRO))
@torch.no_grad()
def test_timm_s_switch_is_obeyed(name, spelled_out):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    set_fused_attn(True)
    torch.manual_seed(0)
    fused = timm.create_model(name).eval()
    for size in [(224, 224), (128, 160)]:
        x = torch.randn(2, 3, *size)
        y = model(x)
        torch.testing.assert_close(y, fused(x), rtol=1e-4, atol=1e-4 * y.abs().max().item())
        maps = AttentionExtract(model, method='hook')(x)
        assert maps
        for attention in maps.values():
            assert attention.ndim == 4
            torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))
