"""What is special about STViT-R-Swin: windows, semantic tokens and recovery against plain loops, the pad mask, the two forms, the files."""
import copy
import itertools
import math

import golden
import numpy as np
import pytest
import timm
import torch
from test_numbers import NUMBERS
from timm.layers import DropPath, LayerScale
from timm.utils import reparameterize_model
from torch import nn

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.models import stvit
from vitzoo.models.stvit import (
    GENERATE_1,
    GENERATE_2,
    MAP,
    RECOVER,
    SHIFT,
    PatchMerging,
    SemanticBlock,
    SemanticStage,
    SwinBlock,
    SwinStage,
    WindowAttention,
    halo_keys,
    pool_windows,
    reordering,
    token_places,
    window_tokens,
)

DIM, HEADS = 8, 2
NATIVE_MAP = (14, 14)
MASKS = ['published', 'correct', None]


def randomise(module):
    """Values far from the initial ones, which hide much: layer scales of 1e-5, biases of 0."""
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=float('norm' in name and name.endswith('weight')), std=0.5 if parameter.ndim > 1 else 0.3)
    return module


# ---- the published computation in plain loops, one image and one head after the other

def softmax_attention(attn, q, k, v, bias=None):
    """One window: q (Q, C), k and v (T, C) -> (Q, C); bias (heads, Q, T)."""
    d = q.shape[1] // attn.num_heads
    out = []
    for head in range(attn.num_heads):
        rows = slice(head * d, (head + 1) * d)
        logits = q[:, rows] @ k[:, rows].T / math.sqrt(d)
        out.append((logits if bias is None else logits + bias[head]).softmax(-1) @ v[:, rows])
    return attn.proj(torch.cat(out, 1))


def plain_swin_block(block, x, shift):
    """x (H, W, C): pad after the norm, roll, attend window by window, roll back, crop."""
    H, W, C = x.shape
    y = torch.zeros(H + -H % 7, W + -W % 7, C, dtype=x.dtype)
    y[:H, :W] = block.norm1(x)
    y = y.roll((-shift, -shift), (0, 1))
    regions = torch.zeros(y.shape[:2])
    for i, (rows, cols) in enumerate(itertools.product((slice(0, -7), slice(-7, -shift), slice(-shift, None)), repeat=2)):
        if shift:
            regions[rows, cols] = i
    out = torch.empty_like(y)
    places = list(itertools.product(range(7), repeat=2))
    bias = torch.stack([torch.stack([block.attn.relative_position_bias_table[(r - s + 6) * 13 + c - t + 6] for s, t in places])
                        for r, c in places]).permute(2, 0, 1)
    for i in range(0, y.shape[0], 7):
        for j in range(0, y.shape[1], 7):
            q, k, v = block.attn.qkv(y[i:i + 7, j:j + 7].reshape(49, C)).split(C, 1)
            region = regions[i:i + 7, j:j + 7].reshape(49)
            mask = torch.where(region[:, None] == region, 0., -100.)
            out[i:i + 7, j:j + 7] = softmax_attention(block.attn, q, k, v, bias + mask).reshape(7, 7, C)
    x = x + out.roll((shift, shift), (0, 1))[:H, :W]
    return x + block.mlp(block.norm2(x))


def plain_pool(x):
    """Adaptive max pooling of each 7x7 window to 3x3: (7a, 7b, C) -> (3a, 3b, C)."""
    rows, cols = x.shape[0] // 7, x.shape[1] // 7
    out = torch.empty(3 * rows, 3 * cols, x.shape[2], dtype=x.dtype)
    for a, b in itertools.product(range(rows), range(cols)):
        window = x[7 * a:7 * a + 7, 7 * b:7 * b + 7].permute(2, 0, 1)[None]
        out[3 * a:3 * a + 3, 3 * b:3 * b + 3] = nn.functional.adaptive_max_pool2d(window, 3)[0].permute(1, 2, 0)
    return out


def plain_semantic_block(block, x, context, residual=True, bias=None):
    """x (Q, C), context (T, C); bias (T,) on the logits."""
    y = block.norm1(context)
    k, v = block.attn.kv(y).split(x.shape[1], 1)
    bias = None if bias is None else bias.expand(block.attn.num_heads, len(x), len(bias))
    y = block.ls1(softmax_attention(block.attn, block.attn.q(block.norm1(x)), k, v, bias))
    x = x + y if residual else y
    return x + block.ls2(block.mlp(block.norm2(x)))


def additive_mask(kind, height, width, pad_b, pad_r, real):
    """What is added to the logits on a map of keys, before the halo: -1000 where hidden."""
    mask = torch.zeros(height, width, dtype=torch.float64)
    if kind == 'published':
        mask[-pad_b:, -pad_r:] = -1000
    elif kind == 'correct':
        mask[~real] = -1000
    return mask


def plain_halo_block(block, queries, keys, mask, hidden_halo, size, step):
    """queries: {window: (Q, C)}; keys (rows * step, cols * step, C) -> {window: (Q, C)}. Zeros around the keys, window by window."""
    left, right = (size - step) // 2, math.ceil((size - step) / 2)
    keys = nn.functional.pad(keys, (0, 0, left, right, left, right))
    mask = nn.functional.pad(mask, (left, right, left, right), value=-1000. if hidden_halo else 0.)
    out = {}
    for (a, b), x in queries.items():
        area = slice(a * step, a * step + size), slice(b * step, b * step + size)
        out[a, b] = plain_semantic_block(block, x, keys[area].flatten(0, 1), bias=mask[area].flatten())
    return out


def cut(grid, side):
    """(rows * side, cols * side, C) -> {window: (side ** 2, C)}"""
    rows, cols = grid.shape[0] // side, grid.shape[1] // side
    return {(a, b): grid[side * a:side * a + side, side * b:side * b + side].flatten(0, 1)
            for a, b in itertools.product(range(rows), range(cols))}


def join(windows, side):
    rows, cols = (1 + max(w[i] for w in windows) for i in (0, 1))
    return torch.cat([torch.cat([windows[a, b].reshape(side, side, -1) for b in range(cols)], 1) for a in range(rows)], 0)


def plain_unit(blocks, x, classifier, pad_mask='published', shortcut=False, centres=None):
    """A dumbbell unit on a map (H, W, C)."""
    base, generate1, generate2, local, everywhere, recover = blocks
    H, W, C = x.shape
    x = plain_swin_block(base, x, 0)
    pad_b, pad_r = -H % 7, -W % 7
    padded = nn.functional.pad(x, (0, 0, 0, pad_r, 0, pad_b))
    pooled = plain_pool(padded)
    rows, cols = padded.shape[0] // 7, padded.shape[1] // 7
    if classifier:
        tokens = {}
        for (a, b), p in cut(pooled, 3).items():
            patch = x[4 * a:4 * a + 10, 4 * b:4 * b + 10].flatten(0, 1)
            tokens[a, b] = plain_semantic_block(generate1, p, torch.cat([p, patch]), residual=shortcut)
        tokens = join(tokens, 3).flatten(0, 1)
        context = torch.cat([tokens, x.flatten(0, 1)])
        tokens = plain_semantic_block(generate2, tokens if centres is None else tokens + centres, context)
        tokens = cut(tokens.reshape(3 * rows, 3 * cols, C), 3)
    else:
        real = torch.zeros(padded.shape[:2], dtype=torch.bool)
        real[:H, :W] = True
        hidden_halo = pad_mask is not None
        mask = additive_mask(pad_mask, *padded.shape[:2], pad_b, pad_r, real)
        tokens = plain_halo_block(generate1, cut(pooled, 3), padded, mask, hidden_halo, 14, 7)
        tokens = plain_halo_block(generate2, tokens, padded, mask, hidden_halo, 21, 7)
    tokens = {w: plain_semantic_block(local, t, t) for w, t in tokens.items()}
    grid = join(tokens, 3)
    flat = grid.flatten(0, 1)
    grid = plain_semantic_block(everywhere, flat, flat).reshape(grid.shape)
    if classifier:
        return plain_semantic_block(recover, x.flatten(0, 1), grid.flatten(0, 1)).reshape(x.shape)
    mask = additive_mask(pad_mask, *grid.shape[:2], pad_b, pad_r, torch.ones(grid.shape[:2], dtype=torch.bool))
    return join(plain_halo_block(recover, cut(padded, 7), grid, mask, hidden_halo, 27, 3), 7)[:H, :W]


# ---- blocks

def semantic_stage(form, pad_mask='published', units=1, **options):
    blocks = [(SemanticBlock if i % 6 else SwinBlock)(DIM, HEADS, 2, True, 0., dtype=torch.float64) for i in range(6 * units)]
    options = {'use_global': False, 'shortcut': False, **options}
    return randomise(SemanticStage(nn.Identity(), blocks, form, pad_mask=pad_mask, dtype=torch.float64, **options))


def compare(found, expected, inputs):
    """Values, and gradients in a random direction."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    direction = torch.randn_like(found)
    pairs = [torch.autograd.grad(y, inputs, direction) for y in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('size', [(14, 21), (7, 7), (9, 12), (14, 17), (3, 1)], ids=str)
def test_swin_stage_against_plain_loops(size):
    blocks = [SwinBlock(DIM, HEADS, 2, True, 0., dtype=torch.float64) for _ in range(3)]
    stage = randomise(SwinStage(nn.Identity(), blocks, 'dense'))
    x = torch.randn(2, *size, DIM, dtype=torch.float64, requires_grad=True)
    expected = []
    for image in x:
        for i, block in enumerate(blocks):
            image = plain_swin_block(block, image, 3 * (i % 2))
        expected.append(image)
    compare(stage(x, (0, 0)), torch.stack(expected), [x, *stage.parameters()])


def test_classifier_form_does_not_shift_a_map_of_one_window():
    blocks = [SwinBlock(DIM, HEADS, 2, True, 0., dtype=torch.float64) for _ in range(2)]
    stages = {form: randomise(SwinStage(nn.Identity(), blocks, form)) for form in ('classifier', 'dense')}
    x = torch.randn(7, 7, DIM, dtype=torch.float64)
    unshifted = plain_swin_block(blocks[1], plain_swin_block(blocks[0], x, 0), 0)
    torch.testing.assert_close(stages['classifier'](x[None], (224, 224))[0], unshifted, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(stages['dense'](x[None], (224, 224))[0], unshifted)


@pytest.mark.parametrize('gather', [False, True], ids=['all keys', 'gathered keys'])
@pytest.mark.parametrize('pad_mask', MASKS)
@pytest.mark.parametrize('size', [
    (14, 14),  # nothing to pad: the published mask hides nothing
    (9, 12),  # both axes: it hides the corner alone
    (8, 21),  # one axis; six padded rows are six semantic rows in recovery
    (21, 10),
    (7, 36),  # six windows in a row: recovery does not see all semantic tokens
    (1, 1),
], ids=str)
def test_dense_unit_against_plain_loops(size, pad_mask, gather, monkeypatch):
    if gather:
        monkeypatch.setattr(stvit, 'GATHER_COST', -math.inf)
    stage = semantic_stage('dense', pad_mask)
    x = torch.randn(2, *size, DIM, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([plain_unit(stage.blocks, image, False, pad_mask) for image in x])
    compare(stage(x, (0, 0)), expected, [x, *stage.parameters()])


@pytest.mark.parametrize('options', [{}, dict(shortcut=True), dict(use_global=True), dict(use_global=True, shortcut=True)], ids=str)
def test_classifier_units_against_plain_loops(options):
    stage = semantic_stage('auto', units=2, **options)
    x = torch.randn(2, *NATIVE_MAP, DIM, dtype=torch.float64, requires_grad=True)
    expected = []
    for image in x:
        centres = None if stage.semantic_token2 is None else stage.semantic_token2[0]
        for i in (0, 6):  # the learned tokens act in the first unit alone
            image = plain_unit(stage.blocks[i:i + 6], image, True, shortcut=stage.shortcut, centres=None if i else centres)
        expected.append(image)
    compare(stage(x, (224, 224)), torch.stack(expected), [x, *stage.parameters()])


def test_patch_merging_takes_the_neighbours_column_by_column():
    merging = randomise(PatchMerging(3, 5, dtype=torch.float64))
    x = torch.randn(1, 4, 6, 3, dtype=torch.float64)
    neighbours = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(neighbours)))
    odd = merging(x[:, :3, :5])
    padded = x.clone()
    padded[:, 3], padded[:, :, 5] = 0, 0
    torch.testing.assert_close(odd, merging(padded))


def test_pooling_is_adaptive_max_pooling():
    x = torch.randn(2, 14, 21, DIM)
    windows = x.flatten(1, 2)[:, window_tokens(14, 21, 0)]
    expected = torch.stack([torch.cat(list(cut(plain_pool(image), 3).values())) for image in x])
    assert torch.equal(pool_windows(windows, 6), expected)


def test_image_is_padded_to_a_multiple_of_4():
    model = timm.create_model('stvit_micro').eval()
    x = torch.randn(1, 3, 33, 46)
    with torch.no_grad():
        assert torch.equal(model.stem(x), model.stem(nn.functional.pad(x, (0, 2, 0, 3))))


# ---- tables

@pytest.mark.parametrize('H, W', [(14, 14), (7, 7), (9, 15), (1, 1), (3, 30)])
@pytest.mark.parametrize('shift', [0, SHIFT])
def test_windows_hold_every_token_once(H, W, shift):
    tokens, places = window_tokens(H, W, shift).numpy(), token_places(H, W, shift).numpy()
    assert tokens.size % 49 == 0 and (np.bincount(tokens, minlength=H * W)[:H * W] == 1).all()
    assert (tokens[places] == np.arange(H * W)).all()


def test_hidden_tokens_weigh_nothing_at_all():
    """Not even a subnormal number, which CPUs multiply slowly: the published -100 leaves exp(-100)."""
    weights = np.exp(stvit.shift_masks().numpy())
    assert set(np.unique(weights)) == {0, 1} and (weights[0] == 1).all()


@pytest.mark.parametrize('source', [MAP, 0, SHIFT])
@pytest.mark.parametrize('target', [MAP, 0, SHIFT])
def test_reordering_leads_from_any_order_to_any_other(source, target):
    orders = {MAP: torch.arange(14 * 21), 0: window_tokens(14, 21, 0), SHIFT: window_tokens(14, 21, SHIFT)}
    assert torch.equal(orders[source][reordering(14, 21, source, target)], orders[target])


def test_tables_are_made_once_per_size_and_hold_no_tensor():
    assert all(type(table) is np.ndarray for table in halo_keys(15, 16, GENERATE_1, None))


def seen_padding(H, W, near, pad_mask):
    key, seen = halo_keys(H, W, near, pad_mask)
    padding = 9 * len(key) if near == RECOVER else H * W
    return (seen & (key == padding)).sum(1), seen


@pytest.mark.parametrize('near', [GENERATE_1, GENERATE_2, RECOVER])
@pytest.mark.parametrize('H, W', [(14, 14), (7, 7), (21, 35)])
def test_published_mask_hides_nothing_of_a_map_without_padding(H, W, near):
    assert seen_padding(H, W, near, 'published')[1].all() and seen_padding(H, W, near, None)[1].all()
    assert not seen_padding(H, W, near, 'correct')[0].any()


@pytest.mark.parametrize('near', [GENERATE_1, GENERATE_2])
@pytest.mark.parametrize('H, W', [(16, 14), (14, 16), (1, 7)])
def test_published_mask_is_right_where_one_axis_is_padded(H, W, near):
    assert (halo_keys(H, W, near, 'published')[1] == halo_keys(H, W, near, 'correct')[1]).all()


@pytest.mark.parametrize('near', [GENERATE_1, GENERATE_2])
def test_published_mask_hides_only_the_corner_where_both_axes_are_padded(near):
    """16x17 tokens in 21x21: the halo and the last 5x4 places are hidden, the other padded places are not."""
    side = near.side
    key, seen = halo_keys(16, 17, near, 'published')
    last = key[-1].reshape(side, side), seen[-1].reshape(side, side)  # starts `left` tokens before row and column 14
    left = (side - 7) // 2
    rows = np.arange(side) - left + 14
    hidden = (rows[:, None] >= 21) | (rows >= 21) | (rows[:, None] >= 16) & (rows >= 17)
    assert (last[1] == ~hidden).all()
    assert (last[0] == 16 * 17)[last[1]].any()


def test_published_mask_of_recovery_counts_image_tokens_in_semantic_tokens():
    """8 rows are padded by 6 to 14: the last 6 of the 6 semantic rows are hidden, so all of them, so none; of 15 rows, 6 of 9."""
    assert seen_padding(8, 7, RECOVER, 'published')[1].all()
    key, seen = halo_keys(15, 7, RECOVER, 'published')
    assert sorted(set(key[0][seen[0]])) == list(range(9))  # the first window's own tokens
    assert sorted(set(key[0])) == list(range(28))


# ---- forms

def micro(**kwargs):
    """The same model each time, with weights that show what attention sees."""
    torch.manual_seed(0)
    model = timm.create_model('stvit_micro', **kwargs).eval()
    for module in model.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
    return model


@torch.no_grad()
def test_auto_is_the_classifier_form_at_224_alone():
    auto, classifier, dense = (micro(form=form) for form in ('auto', 'classifier', 'dense'))
    x = torch.randn(1, 3, 224, 224)
    for run in (lambda model: model(x), lambda model: model.forward_features(x),
                lambda model: model.forward_intermediates(x, intermediates_only=True)[2]):
        assert torch.equal(run(auto), run(classifier))
        assert (run(auto) - run(dense)).abs().max() > 1e-3 * run(dense).abs().max()
    for size in ((224, 256), (223, 224), (64, 96)):
        x = torch.randn(1, 3, *size)
        assert torch.equal(auto(x), dense(x))


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, dict(form='auto'), dict(form='dense')], ids=str)
def test_features_are_of_the_dense_form(options):
    x = torch.randn(1, 3, 224, 224)
    expected = micro(form='dense').forward_intermediates(x, intermediates_only=True)
    for features in (micro(features_only=True, **options), DenseBackbone('stvit_micro', out_norm=False, **options).eval()):
        assert (getattr(features, 'body', features)).model.form == 'dense'
        state = micro().state_dict()
        body = getattr(features, 'body', features)
        body.load_state_dict({key: state[key.removeprefix('model.')] for key in body.state_dict()})
        assert all(torch.equal(a, b) for a, b in zip(features(x), expected, strict=True))


def test_classifier_form_refuses_other_sizes():
    model = micro(form='classifier')
    for forward in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match="Image of 224x256: form='classifier' takes 224x224 alone"):
            forward(torch.randn(1, 3, 224, 256))


@pytest.mark.parametrize('kwargs, message', [
    (dict(form='both'), r"form='both': expected 'auto', 'classifier' or 'dense'"),
    (dict(form='classifier', features_only=True), r"features are of the dense form"),
    (dict(form='dense', use_global=True), r"use_global=True, form='dense'"),
    (dict(use_global=True, features_only=True), r"use_global=True, form='dense'"),
    (dict(pad_mask=True), r'pad_mask=True: expected a string or None'),
    (dict(depths=(1, 1, 5, 1)), r'depths=\(1, 1, 5, 1\): .*multiple of 6'),
    (dict(depths=(1, 1, 6)), r'depths=\(1, 1, 6\): expected 4 integers'),
    (dict(depths=(1, 0, 6, 1)), r'depths=\(1, 0, 6, 1\)'),
    (dict(embed_dims=64), r'embed_dims=64: expected 4 integers'),
    (dict(num_heads=(1, 2, 3, 5)), r'128 channels must be even and divide into 5 heads'),
    (dict(embed_dims=(31, 64, 96, 128)), r'31 channels must be even'),
    (dict(mlp_ratio=0), r'mlp_ratio=0'),
], ids=str)
def test_options_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('stvit_micro', **kwargs)


@torch.no_grad()
def test_pad_mask_matters_where_something_is_padded():
    for size, differ in [((224, 224), ('correct',)), ((448, 224), ('correct',)), ((256, 320), ('correct', None)),
                         ((256, 224), ('correct', None)), ((224, 288), ('correct', None))]:
        x = torch.randn(1, 3, *size)
        maps = {mask: micro(pad_mask=mask or 'none', features_only=True)(x)[2] for mask in MASKS}
        for mask in ('correct', None):
            difference = ((maps['published'] - maps[mask]).abs().max() / maps['published'].abs().max()).item()
            assert difference > 1e-2 if mask in differ else difference < 1e-5, (size, mask, difference)


@torch.no_grad()
@pytest.mark.parametrize('size', [(14, 14), (9, 12)])
@pytest.mark.parametrize('form', ['auto', 'dense'])
def test_without_layer_scales_a_unit_is_its_window_block(form, size):
    stage = semantic_stage(form)
    for block in stage.blocks[1:]:
        block.ls1.gamma.zero_()
        block.ls2.gamma.zero_()
    x = torch.randn(1, *size, DIM, dtype=torch.float64)
    found = stage(x, (224, 224) if size == NATIVE_MAP else (0, 0))
    torch.testing.assert_close(found[0], plain_swin_block(stage.blocks[0], x[0], 0), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_learned_centres_act_at_224_alone():
    model = micro(use_global=True)
    assert model.stages[2].semantic_token2.shape == (1, 36, 96)
    native, other = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 64, 96)
    before = model(native), model(other)
    model.stages[2].semantic_token2.add_(1)
    assert not torch.allclose(model(native), before[0]) and torch.equal(model(other), before[1])


@torch.no_grad()
@pytest.mark.parametrize('size', [(1, 1), (1, 500), (3, 2), (29, 32)])
def test_any_size_from_1x1_on(size):
    maps = micro(features_only=True)(torch.randn(1, 3, *size))
    assert [m.shape[2:] for m in maps] == [tuple(-(-n // stride) for n in size) for stride in (4, 8, 16, 32)]
    assert all(m.isfinite().all() for m in maps)


# ---- training

def test_initial_values():
    model = timm.create_model('stvit_tiny', use_global=True)
    for name, parameter in model.named_parameters():
        if name.startswith('stem') and parameter.ndim == 4:
            fan_in = parameter[0].numel()
            assert parameter.std().item() == pytest.approx(fan_in ** -0.5 / 3 ** 0.5, rel=0.1)  # PyTorch's default
        elif name.endswith(('gamma',)):
            assert (parameter == 1e-5).all()
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert (parameter == (1 if 'weight' in name else 0)).all(), name


@pytest.mark.parametrize('form, shortcut, dropped', [('classifier', False, 1), ('classifier', True, 2), ('dense', False, 2)])
def test_a_branch_without_residual_is_not_dropped(form, shortcut, dropped):
    model = timm.create_model('stvit_micro', drop_path_rate=0.5, form=form, shortcut=shortcut).train()
    calls = []
    block = model.stages[2].blocks[1]
    assert isinstance(block.drop_path, DropPath)
    block.drop_path.register_forward_hook(lambda *args: calls.append(args[2].shape[0]))
    model(torch.randn(2, 3, 224, 224))
    assert calls == [2] * dropped  # one decision an image, not a window


def test_no_weight_decay():
    model = timm.create_model('stvit_micro')
    names = {name for name, _ in model.named_parameters() if name.endswith('relative_position_bias_table')}
    assert model.no_weight_decay() == names and len(names) == 1 + 2 + 1 + 2


def test_layer_decay_groups_are_blocks():
    from timm.models import group_parameters
    model = timm.create_model('stvit_micro')
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    blocks = [f'stages.{i}.blocks.{j}.norm1.weight' for i, depth in enumerate((1, 2, 6, 2)) for j in range(depth)]
    assert [layers[name] for name in ('stem.0.weight', *blocks, 'head.fc.weight')] == list(range(13))
    assert all(layers[f'stages.{i}.downsample.norm.weight'] == layers[f'stages.{i}.blocks.0.norm1.weight'] for i in (1, 2, 3))


# ---- published numbers

@pytest.mark.parametrize('name, params', [('stvit_tiny', 27_552_558), ('stvit_small', 48_857_862), ('stvit_base', 86_789_128)])
def test_parameters_of_a_published_dense_backbone(name, params):
    with torch.device('meta'):
        backbone = DenseBackbone(name)
    assert sum(p.numel() for p in backbone.parameters()) == params


@pytest.mark.parametrize('name, gmacs', [('stvit_tiny', 3.616), ('stvit_small', 5.824), ('stvit_base', 10.261)])
def test_published_operations(name, gmacs):
    """The published code projects 4 * 109 keys for the first generation where we project the 232 tokens that they are copies of."""
    with torch.device('meta'):
        model = timm.create_model(name)
    dim, units = model.feature_info[2]['num_chs'], len(model.stages[2].blocks) // 6
    copies = (4 * 109 - 232) * dim * 2 * dim - 36 * (232 - 109) * 2 * dim  # less what is spent on looking at all 232
    assert (NUMBERS[name].macs + units * copies) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize('size, once, published', [
    ((224, 224), 5.9, 10.3), pytest.param((512, 512), 34.2, 62.1, marks=pytest.mark.slow),
    pytest.param((800, 1280), 130.4, 237.3, marks=pytest.mark.slow)])
def test_dense_form_projects_every_token_once(size, once, published):
    """Below the published arithmetic with each token projected once, which counts padding and up to 729 keys in recovery."""
    with torch.device('meta'):
        features = timm.create_model('stvit_small', features_only=True).eval()
    gmacs = vitzoo.profile(features, size).macs / 1e9
    assert 0.9 * once < gmacs < once < published


@pytest.mark.parametrize('size, megabytes, operators', [(224, 165, 387), pytest.param(512, 1000, 424, marks=pytest.mark.slow)])
def test_memory_traffic_of_the_dense_form(size, megabytes, operators):
    """The published code moves 644 MB in 915 operators at 224, 3.9 GB in 932 at 512."""
    with torch.device('meta'):
        features = timm.create_model('stvit_small', features_only=True).eval()
    cost = vitzoo.profile(features, size)
    assert cost.bytes_moved / 1e6 <= megabytes and cost.operators <= operators


def test_folding():
    model = micro()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith('running_var'):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
        folded = reparameterize_model(model)
        assert not any(isinstance(m, (LayerScale, nn.BatchNorm2d)) for m in folded.modules())
        biases = [m.relative_position_bias_table for m in folded.modules() if isinstance(m, WindowAttention)]
        assert len(biases) == 6 and all(bias.shape[2:] == (49, 49) for bias in biases)
        for size in ((224, 224), (64, 90)):
            x = torch.randn(2, 3, *size)
            y = model(x)
            torch.testing.assert_close(folded(x), y, rtol=0, atol=1e-5 * y.abs().max().item())


# ---- published files

def published_state(name='stvit/stvit_r_swin_tiny.npz'):
    """A checkpoint as published: golden weights and the buffers that the cases leave out."""
    facts, outputs = golden.load_case(name)
    state = golden.make_state_dict(facts['entries'], facts['rescale'])
    for key in [key for key in state if key.endswith('relative_position_bias_table')]:
        state[key.replace('bias_table', 'index')] = torch.zeros(49, 49, dtype=torch.int64)
    if 'head.weight' in state:
        state['layers.0.blocks.1.attn_mask'] = torch.zeros(64, 49, 49)
        state['layers.1.blocks.1.attn_mask'] = torch.zeros(16, 49, 49)
    return state


def dense_state():
    """A detection file of the tiny size, made from the classifier's."""
    state = {key: value for key, value in published_state().items() if not key.startswith(('norm.', 'head.')) and 'attn_mask' not in key}
    return state | {f'norm{i}.{kind}': torch.full((96 * 2 ** i,), 2. + i) for i in range(4) for kind in ('weight', 'bias')}


@pytest.fixture(scope='module')
def classifier_state():
    return published_state()


def test_classifier_file(classifier_state):
    model = timm.create_model('stvit_tiny')
    report = vitzoo.load_checkpoint(model, {'model': classifier_state, 'epoch': 299})
    assert set(report.loaded) == set(model.state_dict())
    assert sorted(report.dropped) == sorted(n for n in classifier_state if n.endswith(('attn_mask', 'relative_position_index')))
    assert not report.new
    assert report.renamed['layers.0.downsample.reduction.weight'] == 'stages.1.downsample.reduction.weight'
    assert report.renamed['layers.2.blocks.1.layer_scale_1'] == 'stages.2.blocks.1.ls1.gamma'
    truncated = {name: value for name, value in classifier_state.items() if not name.startswith('norm.')}
    with pytest.raises(ValueError, match=r'2 missing \(norm.weight, norm.bias\)'):
        vitzoo.load_checkpoint(model, truncated)


def test_classifier_file_starts_a_dense_backbone(classifier_state):
    backbone = DenseBackbone('stvit_tiny')
    report = vitzoo.load_checkpoint(backbone, classifier_state)
    assert report.new == [f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')]
    assert {'norm.weight', 'norm.bias', 'head.weight', 'head.bias', 'layers.0.blocks.1.attn_mask'} <= set(report.dropped)


@pytest.mark.parametrize('whole', [False, True], ids=['backbone', 'detector'])
def test_detection_file(whole):
    state = dense_state()
    if whole:
        state = {f'backbone.{name}': value for name, value in state.items()} | {'neck.lateral_convs.0.conv.weight': torch.zeros(1)}
        state = {'state_dict': state, 'meta': {}}
    backbone = DenseBackbone('stvit_tiny', out_indices=(1, 2, 3))
    report = vitzoo.load_checkpoint(backbone, state)
    assert not report.new and ('neck.lateral_convs.0.conv.weight' in report.dropped) == whole
    assert (backbone.norm3.weight == 5).all() and backbone.norm3.eps == 1e-5
    classifier = timm.create_model('stvit_tiny')
    with pytest.raises(ValueError, match='reset_head=True'):
        vitzoo.load_checkpoint(classifier, state)
    report = vitzoo.load_checkpoint(classifier, state, reset_head=True)
    assert sorted(report.new) == ['head.fc.bias', 'head.fc.weight', 'norm.bias', 'norm.weight']


def test_files_of_other_families_are_refused(classifier_state):
    model = timm.create_model('stvit_tiny')
    before = copy.deepcopy(model.state_dict())
    super_tokens = golden.make_state_dict(golden.load_case('svit/svit_small.npz')[0]['entries'])
    with torch.device('meta'):
        swin = timm.create_model('swin_tiny_patch4_window7_224').to_empty(device='cpu').state_dict()
    for state, message in ((super_tokens, 'super-token checkpoint: use svit_small'), (swin, "Swin checkpoint: use timm's swin_")):
        with pytest.raises(ValueError, match=message):
            vitzoo.load_checkpoint(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match='semantic-token checkpoint .*use stvit_small or stvit_base'):
        vitzoo.load_checkpoint(timm.create_model('svit_micro'), classifier_state)
    with pytest.raises(ValueError, match='unexpected'):
        vitzoo.load_checkpoint(model, published_state('stvit/stvit_r_swin_tiny-global-shortcut.npz'))


def test_files_on_the_hub():
    pretrained = timm.list_models('stvit_*', pretrained=True)
    assert {'stvit_small.in1k', 'stvit_small.coco', 'stvit_base.in1k', 'stvit_base.coco'} <= set(pretrained)
    files = {name: timm.get_pretrained_cfg(name).hf_hub_filename for name in pretrained if name.startswith(('stvit_small', 'stvit_base'))}
    assert files['stvit_base.in1k'] == 'STViT-R-Swin-B.pth' and 'cascade_mask_rcnn_swin_small' in files['stvit_small.coco']
    cfg = timm.get_pretrained_cfg('stvit_small')
    assert (cfg.hf_hub_id, cfg.crop_pct, cfg.input_size, cfg.interpolation) == ('csncsn/STViT-R', 0.875, (3, 224, 224), 'bicubic')


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub, with tiny files in the place of the small ones."""
    folder = tmp_path / 'hub'
    folder.mkdir()
    torch.save({'model': published_state(), 'optimizer': {}, 'max_accuracy': 82.7}, folder / 'STViT-R-Swin-S.pth')
    detector = {f'backbone.{name}': value for name, value in dense_state().items()} | {'roi_head.x': torch.zeros(1)}
    torch.save({'state_dict': detector, 'meta': {}}, folder / timm.get_pretrained_cfg('stvit_small.coco').hf_hub_filename)

    def download(repo, filename=None, **kwargs):
        assert repo == 'csncsn/STViT-R'
        return str(folder / filename)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    monkeypatch.setitem(stvit.VARIANTS, 'stvit_small', stvit.VARIANTS['stvit_tiny'])


@pytest.mark.slow
@torch.inference_mode()
def test_pretrained_models_come_from_the_hub(hub):
    facts, outputs = golden.load_case('stvit/stvit_r_swin_tiny.npz')
    x = golden.make_input(facts['seed'], facts['shape'])
    model = timm.create_model('stvit_small', pretrained=True).eval()
    assert golden.error(model(x).numpy(), outputs['logits']) < 1e-5
    for tag, num_classes in (('in1k', 5), ('in1k', 0), ('coco', 5), ('coco', 0)):
        other = timm.create_model(f'stvit_small.{tag}', pretrained=True, in_chans=1, num_classes=num_classes)
        weight = model.state_dict()['stem.0.weight'].sum(1, keepdim=True)  # timm's way to fewer channels
        torch.testing.assert_close(other.stem[0].weight, weight)
        assert other(torch.randn(1, 1, 32, 32)).shape == (1, num_classes or 768)
    coco = timm.create_model('stvit_small.coco', pretrained=True)
    assert coco.num_classes == 0
    own, state = coco.state_dict(), model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items() if not name.startswith('norm.'))
    features = timm.create_model('stvit_small.coco', pretrained=True, features_only=True)
    timm.create_model('stvit_small.in1k', pretrained=True, features_only=True)
    backbone = DenseBackbone('stvit_small.coco', pretrained=True)
    for wrapper in (features, backbone.body):
        weight = wrapper.model.stages[2].blocks[5].attn.kv.weight
        assert torch.equal(weight, state['stages.2.blocks.5.attn.kv.weight'])
    assert [getattr(backbone, f'norm{i}').bias[0].item() for i in range(4)] == [2, 3, 4, 5]


# ---- export

@pytest.mark.slow
def test_classifier_form_exports(tmp_path):
    """The published code cannot be: nothing translates its adaptive max pooling."""
    for module in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(module)
    vitzoo.export_onnx(micro(), tmp_path / 'model.onnx', 224, dynamic_batch=False, rounds=0)
    import onnx
    assert not {'Shape', 'Loop', 'If'} & {node.op_type for node in onnx.load(tmp_path / 'model.onnx').graph.node}
