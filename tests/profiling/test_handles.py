"""fvcore counts what we count, by our handles; and why it does not by its own."""
import pytest
import timm
import torch
import zoo
from torch import nn

import vitzoo
from vitzoo.profiling import fvcore_handles
from vitzoo.profiling.handles import COUNTED, fvcore_count

fvcore = pytest.importorskip('fvcore.nn')
VITS = {'deit_tiny_patch16_224': 64, 'test_vit': 160, 'swin_tiny_patch4_window7_224': 224}


def total(model, size):
    x = torch.zeros(1, 3, size, size)
    counter = fvcore.FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles()).uncalled_modules_warnings(False)
    return counter.tracer_warnings('none').total()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('size', [128, pytest.param(224, marks=pytest.mark.slow)])  # in some, masked keys, or projections that merge
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in ('svit_micro', 'stvit_deit_micro', 'cas_vit_micro'), zoo.MICRO))
def test_on_every_family(name, size):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        assert total(model, size) == pytest.approx(vitzoo.profile(model, size).macs, rel=1e-6)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: 'swin' in name, VITS))
@pytest.mark.parametrize('fused', [True, False])
def test_on_vits_with_attention_fused_and_not(name, fused, monkeypatch):
    monkeypatch.setattr('timm.layers.config._USE_FUSED_ATTN', int(fused))
    options = {'img_size': VITS[name]} if 'deit' in name else {}
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        assert total(model, VITS[name]) == pytest.approx(vitzoo.profile(model, VITS[name]).macs, rel=1e-6)


@pytest.mark.filterwarnings('ignore')
def test_products_of_all_kinds():
    class Products(nn.Module):
        def forward(self, x):
            a, b = x[:, 0], x[:, 1]  # (1, 6, 6)
            wide = torch.matmul(torch.ones(4, 6), b)  # a matrix times each of a batch
            return wide @ a + torch.baddbmm(a[:, :4], wide, b) + torch.addmm(a[0, :4], wide[0], b[0]) + torch.mv(b[0], a[0, 0]).sum()
    with torch.no_grad():
        assert total(Products(), 6) >= 4 * 4 * 36


@pytest.mark.filterwarnings('ignore')
def test_why_fvcore_differs():
    model = timm.create_model('deit_tiny_patch16_224', img_size=64).eval()
    ours = vitzoo.profile(model, 64).macs
    found = fvcore_count(model, (3, 64, 64))
    tokens, dim, depth = 17, 192, 12
    assert found.attention == depth * 2 * tokens ** 2 * dim
    assert found.macs == fvcore.FlopCountAnalysis(model, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False).total()
    assert found.macs + found.attention - found.other == ours
    assert found.other == (2 * depth + 1) * 5 * tokens * dim  # norms, as fvcore counts them


def test_what_fvcore_counts_by_itself_is_known():
    """A new operator among its own would be counted beside ours."""
    own = fvcore.FlopCountAnalysis(nn.Identity(), torch.zeros(1))._op_handles
    products = {'addmm', 'bmm', '_convolution', 'einsum', 'matmul', 'mm', 'linear'}
    assert {name.removeprefix('aten::') for name in own} <= products | set(COUNTED)
