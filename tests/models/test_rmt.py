"""What is special about RMT: retention against plain loops, its tables in every precision, memory at detector sizes, its files."""
import math

import golden
import memory
import numpy as np
import pytest
import timm
import torch
from torch import nn

import vitzoo
from vitzoo.models import rmt
from vitzoo.models.rmt import LEAST_FUSED, AxialRetention, FullRetention, decay_table, rotary_tables


def softmax(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def plain_retention(module, x, axial):
    """The published computation on one map (H, W, C): heads one by one, neighbouring pairs rotated by complex numbers."""
    H, W, C = x.shape
    n, a, b = module.decay
    d = C // n
    (q, k), v = module.qk(x).split(C, -1), module.v(x)
    angles = torch.arange(H * W, dtype=torch.float32)[:, None] * 10000 ** -torch.linspace(0, 1, d // 2)
    turn = torch.polar(torch.ones_like(angles), angles).view(H, W, d // 2)
    out = torch.zeros_like(x)
    for h in range(n):
        rows = slice(h * d, (h + 1) * d)
        gamma = math.log(1 - 2 ** (-a - b * h / n))
        qh, kh = (torch.complex(*t[..., rows].chunk(2, -1)) * turn for t in (q, k))

        def attend(i, j, places, values, gamma=gamma, qh=qh, kh=kh):
            logits = [(qh[i, j] * kh[p, r].conj()).real.sum().item() * d ** -0.5 + gamma * (abs(i - p) + abs(j - r)) for p, r in places]
            return sum(w * values[p, r] for w, (p, r) in zip(softmax(logits), places, strict=True))

        def map_of(values, places):
            return torch.stack([torch.stack([attend(i, j, places(i, j), values) for j in range(W)]) for i in range(H)])

        if axial:
            values = map_of(v[..., rows], lambda i, j: [(i, c) for c in range(W)])
            values = map_of(values, lambda i, j: [(r, j) for r in range(H)])
        else:
            values = map_of(v[..., rows], lambda i, j: [(r, c) for r in range(H) for c in range(W)])
        out[..., rows] = values
    return module.proj(out + module.lepe(v.permute(2, 0, 1)[None])[0].permute(1, 2, 0))


@pytest.mark.parametrize('size', [(5, 7), (1, 4), (3, 1), (1, 1), (2, 17)], ids=str)
@pytest.mark.parametrize('kind', [AxialRetention, FullRetention])
@pytest.mark.parametrize('fused', [True, False])
def test_retention_against_plain_loops(kind, size, fused, monkeypatch):
    monkeypatch.setattr(rmt, 'LEAST_FUSED', 1)  # of lines the fused kernel too
    module = kind(12, 3, 2., 4.)
    module.sdp_attn.fused_attn = fused
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, *size, 12)
    with torch.no_grad():
        expected = torch.stack([plain_retention(module, image, kind is AxialRetention) for image in x])
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('most', [1, 400, 2000])
def test_full_attention_is_the_same_in_parts(most, monkeypatch):
    module, x = FullRetention(8, 2, 2., 4.), torch.randn(2, 5, 4, 8)
    with torch.no_grad():
        whole = module(x)
        monkeypatch.setattr(rmt, 'MOST_DECAY', most)
        torch.testing.assert_close(module(x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('length', [1, 14, 15, 16, 40])
def test_lines_are_the_same_filled_up(length, monkeypatch):
    module, x = AxialRetention(8, 2, 2., 4.), torch.randn(2, 3, length, 8)
    with torch.no_grad():
        filled = module(x)
        monkeypatch.setattr(rmt, 'LEAST_SOFTMAX', 1)
        torch.testing.assert_close(filled, module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind, size', [(AxialRetention, (LEAST_FUSED, LEAST_FUSED + 3)), (FullRetention, (5, 6))])
def test_fused_kernel_gives_the_same_gradients(kind, size):
    module, x, found = kind(8, 2, 2., 4.), torch.randn(2, *size, 8), []
    for fused in True, False:
        module.sdp_attn.fused_attn = fused
        module.zero_grad()
        module(x).square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(3, 20), (20, 3)])
def test_lines_are_the_same_image_by_image(size, monkeypatch):
    module, x = AxialRetention(8, 2, 2., 4.), torch.randn(3, *size, 8)
    with torch.no_grad():
        whole = module(x)
        monkeypatch.setattr(rmt, 'MOST_CACHED', 0)
        torch.testing.assert_close(module(x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tables_are_those_of_float32_in_every_precision(dtype):
    like = torch.empty(0, dtype=dtype)
    for name, table in (('rotary', lambda like: rotary_tables(200, 334, 16, like=like)),
                        ('decay', lambda like: [decay_table(334, 4, 2., 4., like=like)])):
        for found, single in zip(table(like), table(torch.empty(0)), strict=True):
            assert found.dtype == dtype and found.isfinite().all(), name
            assert torch.equal(found, single.to(dtype)), name
    angles = np.float32(200 * 334 - 1) * np.float32(10000 ** -(3 / 7))
    cos, sin, minus_sin = rotary_tables(200, 334, 16)
    assert torch.equal(minus_sin, -sin)
    np.testing.assert_allclose([cos[-1, 3], sin[-1, 3]], [np.cos(angles) / 2, np.sin(angles) / 2], atol=5e-3)


@pytest.mark.parametrize('autocast', [True, False])
def test_positions_in_half_precision(autocast):
    """More positions than float16 counts; at the last of them a wrong angle would show."""
    torch.manual_seed(0)
    model, x = timm.create_model('rmt_micro', num_classes=10).eval(), torch.randn(1, 3, 400, 400)
    with torch.no_grad():
        y = model(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            z = model(x) if autocast else model.bfloat16()(x.bfloat16())
    assert (z.float() - y).abs().max() < 0.05 * y.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rmt_tiny', 'rmt_small'])
def test_memory_at_the_size_of_detectors(name):
    backbone = vitzoo.DenseBackbone(name).eval()
    with torch.inference_mode(), memory.measured() as used:
        maps = backbone(torch.randn(1, 3, 800, 1333))
    assert [tuple(m.shape[2:]) for m in maps] == [(200, 334), (100, 167), (50, 84), (25, 42)]
    assert used.peak < 3e9


@pytest.mark.parametrize('name, params', [
    ('rmt_tiny', 14_334_216), ('rmt_small', 26_967_240), ('rmt_base', 54_154_896), ('rmt_large', 95_464_864),
    ('rmt_small_tl', 27_480_240), ('rmt_base_tl', 54_667_896), ('rmt_large_tl', 96_105_864),
])
def test_published_number_of_parameters(name, params):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params


# ---- files

def published(model):
    """A file in the published layout for one of our models."""
    state = {}
    for name, value in model.state_dict().items():
        old = name.replace('head.fc.', 'head.').replace('proj.norm.', 'norm.').replace('proj.fc.', 'proj.')
        for new, published in (
                ('stem.', 'patch_embed.proj.'), ('.downsample.conv.', '.downsample.reduction.'), ('.pos_embed.', '.pos.conv.'),
                ('.norm1.', '.retention_layer_norm.'), ('.norm2.', '.final_layer_norm.'), ('.attn.lepe.', '.retention.lepe.conv.'),
                ('.attn.proj.', '.retention.out_proj.'), ('.attn.v.', '.retention.v_proj.'), ('.mlp.dwconv.', '.ffn.dwconv.conv.'),
                ('.mlp.', '.ffn.')):
            old = old.replace(new, published) if new != 'stem.' or old.startswith('stem.') else old
        for i in range(4):
            old = old.replace(f'stages.{i}.downsample.', f'layers.{i - 1}.downsample.')
        old = old.replace('stages.', 'layers.')
        if '.attn.qk.' in old:
            q, k = torch.randn_like(value).chunk(2)
            state[old.replace('.attn.qk.', '.retention.k_proj.')], state[old.replace('.attn.qk.', '.retention.q_proj.')] = k, q
        elif value.is_floating_point():
            state[old] = torch.from_numpy(golden.fill(old, tuple(value.shape)))
    return state


def test_stored_tables_are_dropped():
    model = timm.create_model('rmt_micro')
    state = published(model) | {f'layers.{i}.Relpos.{name}': torch.randn(8) for i in range(4) for name in ('angle', 'decay')}
    report = vitzoo.load_checkpoint(model, state)
    assert len(report.dropped) == 8 and all('.Relpos.' in name for name in report.dropped) and not report.new
    qk = model.stages[0].blocks[0].attn.qk.weight
    q, k = (state[f'layers.0.blocks.0.retention.{name}_proj.weight'] for name in 'qk')
    for rows, part in ((qk[:32], q), (qk[32:], k)):
        assert torch.equal(rows[:16], torch.cat([part[0:16:2], part[1:16:2]]))  # the first head of two


def test_auxiliary_head_adds_half_of_its_best_position():
    model, plain = (timm.create_model('rmt_micro', token_label=label, num_classes=7).eval() for label in (True, False))
    state = published(model)
    report = vitzoo.load_checkpoint(model, state)
    assert not report.dropped and not report.new
    report = vitzoo.load_checkpoint(plain, state)
    assert sorted(report.dropped) == ['aux_head.bias', 'aux_head.weight']
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        aux = model.aux_head(model.forward_features(x).permute(0, 2, 3, 1)).flatten(1, 2).max(1).values
        torch.testing.assert_close(model(x), plain(x) + aux / 2)


def test_auxiliary_head_of_another_input_is_switched_off():
    model, plain = (timm.create_model('rmt_micro', token_label=label, num_classes=7).eval() for label in (True, False))
    state = published(model)
    state['aux_head.weight'] = torch.randn(7, 256)
    report = vitzoo.load_checkpoint(model, state)
    assert sorted(report.dropped) == ['aux_head.bias', 'aux_head.weight']
    vitzoo.load_checkpoint(plain, state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize('kwargs, message', [
    (dict(num_heads=(32, 2, 4, 6)), r'expected an even number a head, got 1'),
    (dict(mlp_ratios=(3., 3.)), r'mlp_ratios=\(3.0, 3.0\): expected one value per stage'),
    (dict(init_values=(2., 2., 2., 0.)), r'init_values=.*expected 0.01 to 100'),
    (dict(heads_ranges=(-1., 2., 2., 2.)), r'heads_ranges=.*expected 0 to 100'),
    (dict(chunkwise_recurrents=(True,)), r'chunkwise_recurrents=.*expected one value per stage'),
    (dict(projection=0), r'projection=0'),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('rmt_micro', **kwargs)
