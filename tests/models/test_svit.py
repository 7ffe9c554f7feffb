"""What is special about SViT: super tokens against plain loops, the published numbers, the conversion of qkv."""
import math

import pytest
import timm
import torch
from timm.layers import LayerScale
from timm.utils import reparameterize_model
from torch import nn

from vitzoo.models.svit import SuperTokenAttention, _split_heads, neighbour_tables

OFFSETS = [(di, dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]


def plain_attention(attn, x):
    """Head by head, query by query."""
    B, N, C = x.shape
    d = C // attn.num_heads
    q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).split(C, dim=-1)
    out = torch.zeros_like(x)
    for head in range(attn.num_heads):
        rows = slice(head * d, (head + 1) * d)
        for n in range(N):
            weights = ((q[:, n:n + 1, rows] * k[..., rows]).sum(-1) / math.sqrt(d)).softmax(-1)
            out[:, n, rows] = (weights[..., None] * v[..., rows]).sum(1)
    return out @ attn.proj.weight.T + attn.proj.bias


def plain_super_tokens(module, x):
    """Paper, section 3, cell by cell and slot by slot; association and mass are constants in the backward pass."""
    (h, w), (B, H, W, C) = module.stoken_size, x.shape
    rows, cols = math.ceil(H / h), math.ceil(W / w)
    padded = x.new_zeros(B, rows * h, cols * w, C)
    padded[:, :H, :W] = x
    pixels = {(i, j): padded[:, i * h:i * h + h, j * w:j * w + w].reshape(B, h * w, C) for i in range(rows) for j in range(cols)}
    tokens = {cell: p.detach().mean(1) for cell, p in pixels.items()}
    nothing = x.new_zeros(B, C)
    for _ in range(module.n_iter):
        association = {}
        for (i, j), p in pixels.items():
            near = [tokens.get((i + di, j + dj), nothing).detach() for di, dj in OFFSETS]
            association[i, j] = torch.stack([(p.detach() * t[:, None]).sum(-1) / math.sqrt(C) for t in near], -1).softmax(-1)  # (B, P, 9)
        tokens = {}
        for i, j in pixels:
            total, mass = 0, 1e-12
            for slot, (di, dj) in enumerate(OFFSETS):
                cell = i - di, j - dj  # sees (i, j) at this offset
                if cell in pixels:
                    a = association[cell][..., slot]
                    total, mass = total + (a[..., None] * pixels[cell]).sum(1), mass + a.sum(1)
            tokens[i, j] = total / mass[:, None]
    refined = plain_attention(module.attn, torch.stack([tokens[cell] for cell in pixels], 1))
    refined = {cell: refined[:, m] for m, cell in enumerate(pixels)}
    out = torch.zeros_like(padded)
    for i, j in pixels:
        near = torch.stack([refined.get((i + di, j + dj), nothing) for di, dj in OFFSETS], 1)
        out[:, i * h:i * h + h, j * w:j * w + w] = (association[i, j] @ near).reshape(B, h, w, C)
    return out[:, :H, :W]


def attention(stoken_size, n_iter=1, dim=8, num_heads=2):
    return SuperTokenAttention(dim, num_heads, stoken_size, n_iter, dtype=torch.float64)


@pytest.mark.parametrize('n_iter', [1, 2, 3])
@pytest.mark.parametrize('size, stoken_size', [
    ((8, 12), (4, 4)),  # nothing to pad
    ((7, 10), (3, 4)),  # padding on both sides
    ((9, 4), (2, 4)),  # a single column
    ((5, 7), (16, 8)),  # a single cell, larger than the map
    ((1, 1), (2, 2)),
])
def test_super_token_attention_against_plain_loops(size, stoken_size, n_iter):
    module = attention(stoken_size, n_iter)
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    y, expected = module(x), plain_super_tokens(module, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *module.parameters()]
    direction = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction),
                               rtol=1e-9, atol=1e-11)


def test_attention_of_all_positions_against_plain_loops():
    module = attention((1, 1))
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), plain_attention(module.attn, x.reshape(2, 15, 8)).reshape(2, 3, 5, 8), rtol=1e-10, atol=1e-12)


def test_association_takes_no_gradient():
    """The derivative is that of the weighted mean and the attention alone, so it is not the finite difference."""
    module = attention((2, 2))
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    step = 1e-6 * direction
    with torch.no_grad():
        finite = (module(x + step) - module(x - step)).sum() / 2e-6
    gradient, = torch.autograd.grad(module(x).sum(), x)
    assert abs((gradient * direction).sum() - finite) > 1e-3


@pytest.mark.parametrize('rows, cols', [(1, 1), (1, 4), (3, 1), (2, 2), (4, 7)])
def test_neighbour_tables(rows, cols):
    tables = neighbour_tables(rows, cols)
    M = rows * cols
    assert tables.dtype == torch.int64 and tables.shape == (2, 9 * M)
    spread, collect = tables.reshape(2, M, 9)
    for m in range(M):
        for slot, (di, dj) in enumerate(OFFSETS):
            i, j = m // cols + di, m % cols + dj
            inside = 0 <= i < rows and 0 <= j < cols
            assert spread[m, slot] == (i * cols + j if inside else M)
        pairs = {9 * n + slot for n in range(M) for slot in range(9) if spread[n, slot] == m}
        assert pairs == set(collect[m][collect[m] < 9 * M].tolist())
        assert (collect[m] <= 9 * M).all()


@pytest.mark.parametrize('stoken_size', [((8, 4), 4, 1, 1), (16, 8, 2, 1), ((3, 5), (2, 7), 2, 2), (64, 32, 16, 8)])
def test_other_super_token_sizes(stoken_size):
    model = timm.create_model('svit_micro', stoken_size=stoken_size, n_iter=(2, 1, 1, 3), num_classes=4).train()
    for size in [(64, 96), (33, 130), (1, 1)]:
        model.zero_grad()
        y = model(torch.randn(2, 3, *size))
        assert y.shape == (2, 4)
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert set(model.state_dict()) == set(timm.create_model('svit_micro').state_dict())


def test_rounds_and_sizes_matter():
    x = torch.randn(1, 3, 64, 64)
    outputs = []
    for kwargs in [{}, dict(stoken_size=(4, 4, 1, 1)), dict(n_iter=(2, 1, 1, 1)), dict(n_iter=(1, 2, 1, 1))]:
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(timm.create_model('svit_micro', **kwargs).eval()(x))
    for i in range(1, len(outputs)):
        assert not torch.allclose(outputs[0], outputs[i])


@pytest.mark.parametrize('kwargs, message', [
    (dict(stoken_size=(8, 4)), r'stoken_size=\(8, 4\): expected one value per stage'),
    (dict(stoken_size=(8, 4, 0, 1)), r'stoken_size=.*positive'),
    (dict(stoken_size=((8, 4, 2), 4, 1, 1)), r'stoken_size=.*pair'),
    (dict(n_iter=(1, 0, 1, 1)), r'n_iter=\(1, 0, 1, 1\): expected 1 to 100'),
    (dict(n_iter=2), r'n_iter=2: expected a list of integers'),
    (dict(num_heads=(1, 2, 5, 6)), r'num_heads=\(1, 2, 5, 6\)'),
    (dict(num_heads=(1, 2, 4, 0)), r'num_heads=\(1, 2, 4, 0\)'),
    (dict(embed_dims=(31, 64, 128, 192)), r'31 channels must be even'),
    (dict(depths=(1, 1, 0, 1)), r'depths=\(1, 1, 0, 1\)'),
    (dict(mlp_ratio=-1.), r'mlp_ratio=-1.0'),
    (dict(projection=0), r'projection=0'),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('svit_micro', **kwargs)


def test_qkv_rows_go_from_heads_first_to_qkv_first():
    attn = attention((1, 1), dim=12, num_heads=3).attn
    model = nn.ModuleDict({'attn': attn})
    published = [(head, part, channel) for head in range(3) for part in 'qkv' for channel in range(4)]
    ours = [(head, part, channel) for part in 'qkv' for head in range(3) for channel in range(4)]
    rows = torch.arange(36.)
    for value in (rows, rows[:, None].expand(36, 12)):
        found = _split_heads(value, model, 'attn.qkv.weight')
        assert found.shape == value.shape
        assert [published[int(row)] for row in found.reshape(36, -1)[:, 0]] == ours


def test_layer_scales_fold_into_the_projections():
    model = timm.create_model('svit_micro', init_values=(0.3, None, 1e-6, 0.5)).eval()
    scales = [m for m in model.modules() if isinstance(m, LayerScale)]
    assert len(scales) == 2 * (1 + 2 + 1)
    for scale in scales:
        nn.init.normal_(scale.gamma)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    folded = reparameterize_model(model)
    assert not any(isinstance(m, LayerScale) for m in folded.modules())
    # only those behind an activation, where the next convolution pads with zeros, stay
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 4
    x = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(folded(x), y, rtol=0, atol=1e-5 * y.abs().max().item())


@pytest.mark.parametrize('name, params', [('svit_small', 25_495_624), ('svit_base', 51_691_288), ('svit_large', 94_971_096)])
def test_published_number_of_parameters(name, params):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    scales = [path for path, m in model.named_modules() if isinstance(m, LayerScale)]
    assert len(scales) == (0 if name == 'svit_small' else 2 * sum(len(stage.blocks) for stage in model.stages[2:]))
