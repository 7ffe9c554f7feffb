"""What is special about LookupViT: the exchange of tokens against plain loops, the invariants of its description, a ViT as a start."""
import copy
import math
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import zoo
from test_numbers import NUMBERS
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from timm.utils import reparameterize_model
from torch import nn

import vitzoo
from vitzoo.export.deploy import deploy_form
from vitzoo.layers.resample import resize_matrix, resize_table, resize_tokens
from vitzoo.models.lookupvit import Block, Gather, Infuse, SequenceFirstGather, SequenceFirstInfuse

FORMS = [dict(), dict(pre_norm=True)]


def build(name='lookupvit_micro', **kwargs):
    """The micro one in the form of the others."""
    plain = dict(patch_size=16, stem='patch', num_heads=2, pre_norm=False, pos_std=.02) if name == 'lookupvit_micro' else {}
    return timm.create_model(name, **{**plain, **kwargs}).eval()


def image(*size, batch=2):
    return torch.randn(batch, 3, *size)


def far_from_initial(module):
    """Norms and biases that do something."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 1. if 'norm' in name and name.endswith('weight') else 0., 0.3)
    return module


def exchange(cls, dim=12, num_heads=3, pre_norm=False):
    return far_from_initial(cls(dim, num_heads, True, pre_norm, dtype=torch.float64))


def silence(model, *names):
    """Zero weight and bias of these modules in every block."""
    with torch.no_grad():
        for block in model.blocks:
            for name in names:
                for parameter in block.get_submodule(name).parameters():
                    parameter.zero_()


# ---- the exchange, head by head and token by token

def plain_gather(module, compressed, lookup):
    C, L = module.norm(compressed), module.norm_lookup(lookup)
    Q, K, V = module.q_norm(module.q(C)), module.k_norm(module.k(L)), module.v(L)
    M, N, d = compressed.shape[1], lookup.shape[1], compressed.shape[2] // module.num_heads
    attention, out = [], torch.zeros_like(compressed)
    for head in range(module.num_heads):
        rows = slice(head * d, (head + 1) * d)
        A = torch.stack([(Q[:, m, None, rows] * K[..., rows]).sum(-1) for m in range(M)], 1) / math.sqrt(d)
        A = A.exp() / A.exp().sum(2, keepdim=True)
        out[..., rows] = sum(A[:, :, n, None] * V[:, n, None, rows] for n in range(N))
        attention.append(A)
    return module.proj(out), torch.stack(attention, 1)


def plain_infuse(module, compressed, attention):
    V = module.v_norm(module.v(module.norm(compressed)))
    (B, heads, M, N), d = attention.shape, V.shape[2] // module.num_heads
    out = V.new_zeros(B, N, V.shape[2])
    for head in range(heads):
        rows = slice(head * d, (head + 1) * d)
        out[..., rows] = sum(attention[:, head, m, :, None] * V[:, m, None, rows] for m in range(M))
    return module.proj(out)


@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('M, N', [(4, 30), (9, 4), (1, 1)])
def test_exchange_against_plain_loops(form, M, N):
    gather, infuse = exchange(Gather, **form), exchange(Infuse, **form)
    C, L = (torch.randn(2, T, 12, dtype=torch.float64, requires_grad=True) for T in (M, N))
    found, expected = [], []
    for results, gathering, infusing in ((found, gather, infuse), (expected, *(lambda *a, f=f, m=m: f(m, *a) for f, m in (
            (plain_gather, gather), (plain_infuse, infuse))))):
        gained, attention = gathering(C, L)
        results += [gained, attention, infusing(C + gained, attention)]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    inputs = [C, L, *gather.parameters(), *infuse.parameters()]
    directions = [torch.randn_like(y) for y in found]
    torch.testing.assert_close(torch.autograd.grad(found, inputs, directions), torch.autograd.grad(expected, inputs, directions),
                               rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('M, N', [(4, 300), (9, 4)])  # of which the first is cheaper in the other order
def test_folded_exchange(form, M, N):
    gather, infuse = exchange(Gather, **form), exchange(Infuse, **form)
    C, L = (torch.randn(2, T, 12, dtype=torch.float64) for T in (M, N))
    with torch.no_grad():
        gained, attention = gather(C, L)
        expected = gained, attention, infuse(C, attention)
        folded = copy.deepcopy(gather).fuse(), copy.deepcopy(infuse).fuse()
        gained, attention = folded[0](C, L)
        torch.testing.assert_close((gained, attention, folded[1](C, attention)), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(folded[0].fuse()(C, L), (gained, attention), rtol=0, atol=0)


@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('M, N', [(4, 300), (9, 4)])  # in both orders
def test_sequence_first_exchange(form, M, N):
    gather, infuse = exchange(Gather, **form).fuse(), exchange(Infuse, **form).fuse()
    C, L = (torch.randn(2, T, 12, dtype=torch.float64) for T in (M, N))
    with torch.no_grad():
        gained, attention = gather(C, L)
        found, found_attention = SequenceFirstGather(gather)(C.transpose(0, 1), L.transpose(0, 1))
        torch.testing.assert_close((found.transpose(0, 1), found_attention), (gained, attention), rtol=1e-10, atol=1e-12)
        found = SequenceFirstInfuse(infuse)(C.transpose(0, 1), attention)
        torch.testing.assert_close(found.transpose(0, 1), infuse(C, attention), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('foreign', [False, True])
def test_deployed_model_gives_the_same_maps(foreign):
    """Attention that is not timm's plain one expects a token's image before its place, and the model stays as it is."""
    model, x = far_from_initial(build(depth=2)), image(80, 112)
    if foreign:
        model.blocks[1].refine.attn = nn.Sequential(model.blocks[1].refine.attn)
        model.blocks[1].refine.attn.forward = lambda x, **kwargs: model.blocks[1].refine.attn[0](x)
    deployed = deploy_form(model)
    assert deployed.token_axis == (1 if foreign else 0)
    with torch.no_grad():
        for result, expected in zip(*(m.forward_intermediates(x, return_prefix_tokens=True) for m in (deployed, model)), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_folded_model_multiplies_less():
    model = build('lookupvit_tiny_patch16')
    folded = reparameterize_model(model)
    assert vitzoo.profile(folded, 224).macs < 0.9 * vitzoo.profile(model, 224).macs
    model.set_compressed_size(14)
    folded.set_compressed_size(14)  # where the given order is the cheaper one
    assert vitzoo.profile(folded, 224).macs == vitzoo.profile(model, 224).macs


# ---- invariants

@pytest.mark.parametrize('depth', [1, 3])
def test_without_the_exchange_compressed_tokens_are_a_plain_vit(depth):
    vit = far_from_initial(VisionTransformer(
        img_size=64, embed_dim=48, depth=depth, num_heads=3, class_token=False, global_pool='avg', num_classes=0).eval())
    model = build(img_size=64, embed_dim=48, depth=depth, num_heads=3, compressed_size=4)
    vitzoo.load_checkpoint(model, vit.state_dict())
    silence(model, 'gather.proj')
    vit.norm = nn.Identity()
    x = image(64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x)[:, :16], vit.forward_features(x), rtol=0, atol=0)


def test_order_of_lookup_tokens_does_not_matter():
    block = far_from_initial(Block(32, 2, 4., 0.5, qkv_bias=True, pre_norm=False, drop_path=0., writes=True)).eval()
    C, L, order = torch.randn(2, 9, 32), torch.randn(2, 40, 32), torch.randperm(40)
    with torch.no_grad():
        compressed, lookup = block(C, L)
        shuffled, permuted = block(C, L[:, order])
    torch.testing.assert_close(shuffled, compressed)
    torch.testing.assert_close(permuted, lookup[:, order])


def test_rows_of_the_attention_sum_to_one_and_columns_do_not():
    """The transposed map is not normalised again: a column sums to M / N on average."""
    model = build()
    maps = []
    for block in model.blocks:
        block.gather.register_forward_hook(lambda module, args, out: maps.append(out[1]))
        block.infuse.register_forward_pre_hook(lambda module, args: maps.append(args[1]))
    with torch.no_grad():
        model(image(224, 224, batch=1))
    for gathered, infused in zip(maps[::2], maps[1::2], strict=True):
        assert gathered is infused and gathered.shape == (1, 2, 25, 196)
        torch.testing.assert_close(gathered.sum(3), torch.ones(1, 2, 25))
        torch.testing.assert_close(gathered.sum(2).mean(2), torch.full((1, 2), 25 / 196))


@pytest.mark.parametrize('size, new_size', [
    ((14, 14), (5, 5)), ((14, 14), (10, 3)), ((3, 7), (14, 16)), ((1, 1), (5, 5)), ((31, 5), (1, 1)),
])
def test_resize_is_interpolation(size, new_size):
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = F.interpolate(x, new_size, mode='bilinear', antialias=True)
    found = resize_tokens(x.flatten(2).transpose(1, 2), size, new_size)
    torch.testing.assert_close(found.transpose(1, 2).unflatten(2, new_size), expected, rtol=1e-12, atol=1e-12)
    constant = resize_tokens(torch.full((1, math.prod(size), 1), 3.), size, new_size)
    torch.testing.assert_close(constant, torch.full_like(constant, 3.))


@pytest.mark.parametrize('new_size', [(14, 14), (24, 24), (7, 31), (1, 3), (64, 2)])
def test_positions_are_resampled_as_timm_does(new_size):
    table = torch.randn(1, 14 * 14, 8)
    expected = resample_abs_pos_embed(table, list(new_size), [14, 14], num_prefix_tokens=0)
    torch.testing.assert_close(resize_table(table, (14, 14), new_size, 'bicubic'), expected, rtol=0, atol=1e-5)
    table = table.double()  # where timm's stays in float32
    expected = F.interpolate(table.transpose(1, 2).unflatten(2, (14, 14)), new_size, mode='bicubic', antialias=True)
    found = resize_table(table, (14, 14), new_size, 'bicubic').transpose(1, 2).unflatten(2, new_size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_resize_to_the_same_size_is_the_identity():
    np.testing.assert_array_equal(resize_matrix(9, 9), np.eye(9))


def test_number_of_compressed_tokens_changes_one_table_alone():
    models = {m: build(compressed_size=m) for m in (3, 5, (7, 10))}
    shapes = [{name: p.shape for name, p in model.named_parameters() if name != 'pos_compressed'} for model in models.values()]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [model.pos_compressed.shape[1] for model in models.values()] == [9, 25, 70]


def test_without_the_exchange_a_lookup_token_depends_on_its_patch_alone():
    model = build()
    silence(model, 'gather.proj', 'infuse.proj')
    x = image(64, 96, batch=1)
    y = x.clone()
    y[:, :, 16:32, 32:48] += 1
    with torch.no_grad():
        for a, b in zip(*(model.forward_intermediates(z, intermediates_only=True) for z in (x, y)), strict=True):
            changed = (a != b).any(1)[0]
            assert changed.sum() == 1 and changed[1, 2]


def test_convolutional_stem():
    """Half the width at twice the resolution, down to the image; the same grid as of patches, also where the image is padded."""
    model = timm.create_model('lookupvit_micro').eval()
    widths = [tuple(m.weight.shape[:2]) for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [(32, 3), (64, 32), (128, 64), (128, 128)] and sum(p.numel() for p in model.parameters()) == 1_865_968
    with torch.no_grad():
        assert model.forward_intermediates(image(50, 70), intermediates_only=True)[-1].shape == (2, 128, 7, 9)
    for patch_size in (12, 1, (8, 16)):
        with pytest.raises(ValueError, match='power of two'):
            build(patch_size=patch_size, stem='conv')
    with pytest.raises(ValueError, match="stem='linear'"):
        build(stem='linear')


def test_positions_start_as_wide_as_asked():
    model = build(pos_std=0.5)
    for table in model.pos_embed, model.pos_compressed:
        assert table.std().item() == pytest.approx(0.5, rel=0.1)
    for pos_std in (-1., math.nan):
        with pytest.raises(ValueError, match='pos_std'):
            build(pos_std=pos_std)


# ---- counts

def block_macs(D, M, N):
    return (3 * N * M + 2 * M * M) * D + (4 * N + 15 * M) * D * D


def analytic_macs(D, depth, size, M):
    h, w = (n // 16 for n in size)
    side = math.isqrt(M)
    resize = side * h * w * D + M * w * D
    return depth * block_macs(D, M, h * w) + 3 * 256 * D * h * w + resize + 2 * 1000 * D


GMACS = {
    'lookupvit_tiny_patch16': (0.45, 0.78, 1.22), 'lookupvit_small_patch16': (1.71, 2.90, 4.46),
    'lookupvit_base_patch16': (6.67, 11.18, 17.01), 'lookupvit_large_patch16': (23.42, 39.21, 59.57),
}


@pytest.mark.parametrize('name', zoo.first_quick(GMACS))
def test_operations(name):
    with torch.device('meta'):
        model = build(name)
    assert NUMBERS[name].macs == analytic_macs(model.embed_dim, len(model.blocks), (224, 224), 25)
    for m, expected in zip((3, 7, 10), GMACS[name], strict=True):
        model.set_compressed_size(m)
        macs = vitzoo.profile(model, 224).macs
        table = (5 * 5 * m + 5 * m * m) * model.embed_dim  # pos_compressed for another size
        assert macs == analytic_macs(model.embed_dim, len(model.blocks), (224, 224), m * m) + table
        assert macs / 1e9 == pytest.approx(expected, rel=0.01)


def test_operations_at_384():
    with torch.device('meta'):
        macs = vitzoo.profile(build('lookupvit_base_patch16', img_size=384), 384).macs
    assert macs == analytic_macs(768, 12, (384, 384), 25)
    assert macs / 1e9 == pytest.approx(19.71, rel=0.01)


# ---- compressed sizes

@pytest.mark.parametrize('size', [1, 3, 7, 10, (3, 6), (20, 1)])
def test_other_compressed_sizes_at_inference(size):
    model = build(num_classes=4)
    x = image(64, 96)
    with torch.no_grad():
        y = model(x)
        model.set_compressed_size(size)
        z = model(x)
        rows, cols = size if isinstance(size, tuple) else (size, size)
        assert model.forward_features(x).shape == (2, rows * cols + 24, 128)
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), z, rtol=0, atol=0)
        assert not torch.allclose(y, z)
        model.set_compressed_size(5)
        torch.testing.assert_close(model(x), y, rtol=0, atol=0)


@pytest.mark.parametrize('size', [0, -1, 2.5, (3, 0), (1, 2, 3), '5', True], ids=str)
def test_bad_compressed_size_is_refused(size):
    model = build()
    with pytest.raises(ValueError, match='compressed_size=.*expected'):
        model.set_compressed_size(size)
    assert model.compressed_size == (5, 5)


@pytest.mark.slow
@pytest.mark.parametrize('size, strict', [((2, 7), False), (3, True)])
def test_compiles_and_exports_at_any_compressed_size(size, strict):
    model = build(depth=2)
    model.set_compressed_size(size)
    x = image(72, 120)
    torch._dynamo.reset()
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(torch.compile(copy.deepcopy(model), fullgraph=True, backend='aot_eager')(x), y)
        torch.testing.assert_close(torch.export.export(model, (x,), strict=strict).module()(x), y)


@pytest.mark.slow
@pytest.mark.parametrize('size, compressed_size', [((200, 120), (3, 7)), pytest.param(224, 5, marks=pytest.mark.slow)])
def test_exported_graph(tmp_path, size, compressed_size):
    """All shapes are settled, and resizing takes no operator of its own."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    model = build(depth=2)
    model.set_compressed_size(compressed_size)
    vitzoo.export_onnx(model, tmp_path / 'model.onnx', size, rounds=0)
    kinds = {node.op_type for node in onnx.load(tmp_path / 'model.onnx').graph.node}
    assert kinds.isdisjoint({'Shape', 'Resize', 'Gather', 'GatherND', 'Einsum', 'Expand'})


def test_sizes_are_drawn_in_training():
    model = build(train_sizes=(3, 5, (7, 10)), num_classes=4)
    assert model.pos_compressed.shape == (1, 70, 128)
    x = image(64, 64)
    counts = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[1]))
    with torch.no_grad():
        for _ in range(3):
            model(x)
        assert counts == [25] * 3
        counts.clear()
        model.train()
        for _ in range(30):
            model(x)
        assert set(counts) == {9, 25, 70}
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            counts.clear()
            for _ in range(10):
                model(x)
            runs.append(counts.copy())
    assert runs[0] == runs[1] != runs[2]


def test_drawn_size_stays_until_the_next_draw():
    model = build(train_sizes=(3, 5, 7, 10)).train()
    seen = set()
    for _ in range(20):
        rows, cols = model.draw_compressed_size()
        assert model.forward_features(image(64, 64)).shape[1] == rows * cols + 16
        seen.add(rows)
    assert seen == {3, 5, 7, 10}
    with pytest.raises(ValueError, match='train_sizes=None'):
        build().draw_compressed_size()


def test_head_needs_the_number_of_tokens_where_it_is_drawn():
    model = build(train_sizes=(3, 7)).train()
    with pytest.raises(ValueError, match='num_compressed=None'):
        model.forward_head(torch.randn(2, 49 + 16, 128))
    assert model.forward_head(torch.randn(2, 49 + 16, 128), num_compressed=49).shape == (2, 1000)
    model.draw_compressed_size()
    model.forward_head(model.forward_features(image(64, 64)))


@pytest.mark.slow
def test_compiled_model_trains_at_drawn_sizes():
    model = build(train_sizes=(3, 7), num_classes=4, depth=1).train()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = image(64, 64)
    torch._dynamo.reset()
    with pytest.raises(Exception, match='draw_compressed_size'):
        compiled(x)
    torch._dynamo.reset()
    for _ in range(6):
        model.draw_compressed_size()
        y = compiled(x)
        y.square().mean().backward()
        torch.testing.assert_close(y, model(x))


def test_every_parameter_trains_at_every_size():
    model = build(train_sizes=(3, 5, 7, 10), num_classes=4).train()
    for size in model.train_sizes:
        model.drawn_size = size
        model.zero_grad()
        model(image(64, 64)).square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


# ---- heads

def test_compressed_head_is_the_compressed_half_of_both():
    both, compressed = build(), build(head='compressed')
    report = vitzoo.load_checkpoint(compressed, both.state_dict())
    assert not report.new and len(report.loaded) == len(compressed.state_dict())
    assert {name.split('.')[0] for name in report.dropped} == {'head_lookup', 'fc_norm_lookup', 'blocks'}
    both.train().set_separate_logits()
    x = image(64, 96)
    with torch.no_grad():
        logits, lookup_logits = both(x)
        torch.testing.assert_close(compressed(x), logits, rtol=0, atol=0)
        torch.testing.assert_close(both.eval()(x), (logits + lookup_logits) / 2, rtol=0, atol=0)
        tokens = compressed.forward_features(x)
        assert tokens.shape == (2, 25, 128)
        torch.testing.assert_close(compressed.forward_head(tokens), logits, rtol=0, atol=0)
    assert vitzoo.profile(compressed, 224).macs < vitzoo.profile(both, 224).macs - block_macs(128, 0, 196) // 4


def test_compressed_head_has_no_idle_parameter():
    model = build(head='compressed', num_classes=4).train()
    model(image(64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert isinstance(model.get_classifier(), nn.Linear)
    assert not any(name.startswith('blocks.3.infuse') for name, _ in model.named_modules())


def test_features_of_a_model_with_compressed_head():
    """The last block has no map of its own."""
    model, features = build(head='compressed'), build(head='compressed', features_only=True)
    assert len(model.feature_info) == 3 and list(features.feature_info.out_indices) == [0, 1, 2]
    state = model.state_dict()
    features.load_state_dict({key: state[key.removeprefix('model.')] for key in features.state_dict()})
    x = image(64, 64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(features(x), maps, rtol=0, atol=0)
        torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)


def test_separate_logits_need_both_heads():
    with pytest.raises(ValueError, match="head='both'"):
        build(head='compressed').set_separate_logits()


@pytest.mark.parametrize('head', ['both', 'compressed'])
@pytest.mark.parametrize('global_pool', ['avg', 'max', 'avgmax'])
def test_pools_each_token_set(head, global_pool):
    model = build(head=head, global_pool=global_pool, num_classes=3)
    x = image(64, 96)
    with torch.no_grad():
        tokens = model.forward_features(x)
        sets = [(tokens[:, :25], model.fc_norm, model.head)]
        if head == 'both':
            sets.append((tokens[:, 25:], model.fc_norm_lookup, model.head_lookup))
        pooled = {'avg': lambda t: t.mean(1), 'max': lambda t: t.amax(1), 'avgmax': lambda t: (t.mean(1) + t.amax(1)) / 2}[global_pool]
        torch.testing.assert_close(model(x), sum(head(norm(pooled(t))) for t, norm, head in sets) / len(sets))
        pre_logits = model.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(pre_logits, sum(norm(pooled(t)) for t, norm, _ in sets) / len(sets))
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pre_logits)
        model.reset_classifier(0, '')
        torch.testing.assert_close(model(x), tokens, rtol=0, atol=0)
        assert not any(name.startswith(('head', 'fc_norm')) for name, _ in model.named_parameters())
        with pytest.raises(ValueError, match="global_pool='' with num_classes=7"):
            model.reset_classifier(7)
        model.reset_classifier(7, 'avg')
        assert model(x).shape == (2, 7)


def test_maps_and_prefix_tokens():
    model = build()
    x = image(65, 31)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        pairs = model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
        tokens = model.forward_intermediates(x, output_fmt='NLC', intermediates_only=True)
        last = model.forward_features(x)
    for y, (z, compressed), t in zip(maps, pairs, tokens, strict=True):
        assert y.shape == (2, 128, 5, 2) and y.is_contiguous() and compressed.shape == (2, 25, 128)
        assert torch.equal(y, z) and torch.equal(y.flatten(2).transpose(1, 2), t)
    torch.testing.assert_close(torch.cat([pairs[-1][1], tokens[-1]], 1), last, rtol=0, atol=0)


# ---- a ViT as a start

def vit_state(name='vit_small_patch16_224', **kwargs):
    return far_from_initial(timm.create_model(name, embed_dim=48, depth=3, num_heads=3, **kwargs)).state_dict()


def small_model(**kwargs):
    return build('lookupvit_small_patch16', embed_dim=48, depth=3, num_heads=3, **kwargs)


@pytest.mark.parametrize('name, kwargs', [
    ('vit_small_patch16_224', {}), ('vit_small_patch16_224', dict(reg_tokens=4, no_embed_class=True)), ('vit_base_patch16_gap_224', {}),
    ('deit_small_patch16_224', {}), ('deit_small_distilled_patch16_224', {}),
], ids=str)
def test_starts_from_a_vit(name, kwargs):
    state = vit_state(name, **kwargs)
    model = small_model()
    initial = copy.deepcopy(model.state_dict())
    report = vitzoo.load_checkpoint(model, {'model': state})
    own = model.state_dict()
    assert set(report.loaded) | set(report.new) == set(own) and not set(report.loaded) & set(report.new)
    for key in report.new:
        assert torch.equal(own[key], initial[key])
        assert key.split('.')[0] in ('head', 'head_lookup', 'fc_norm', 'fc_norm_lookup') or any(
            part in key for part in ('.gather.proj', '.gather.q_norm', '.gather.k_norm', '.infuse.', '.mlp.', '.norm.'))
    assert torch.equal(own['patch_embed.proj.weight'], state['patch_embed.proj.weight'])
    for i in range(3):
        for part in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'):
            assert torch.equal(own[f'blocks.{i}.refine.{part}.weight'], state[f'blocks.{i}.{part}.weight'])
        for part, bias in zip('qkv', state[f'blocks.{i}.attn.qkv.bias'].chunk(3), strict=True):
            assert torch.equal(own[f'blocks.{i}.gather.{part}.bias'], bias)
    dropped = {key.split('.')[0] for key in report.dropped}
    assert dropped <= {'cls_token', 'dist_token', 'reg_token', 'norm', 'fc_norm', 'head', 'head_dist', 'pos_embed[:, :1]',
                       'pos_embed[:, :2]'}
    grid = state['pos_embed'][:, -196:]
    assert torch.equal(own['pos_embed'], grid)
    expected = F.interpolate(grid.transpose(1, 2).unflatten(2, (14, 14)), (5, 5), mode='bilinear', antialias=True)
    torch.testing.assert_close(own['pos_compressed'].transpose(1, 2).unflatten(2, (5, 5)), expected)


def test_starts_from_a_vit_of_another_size_through_timm_and_features(tmp_path):
    state = vit_state(img_size=96, num_classes=7)
    path = tmp_path / 'vit.pth'
    torch.save(state, path)
    model = timm.create_model('lookupvit_small_patch16', pretrained=True, pretrained_cfg_overlay=dict(file=str(path)),
                              embed_dim=48, depth=3, num_heads=3).eval()
    expected = resample_abs_pos_embed(state['pos_embed'], [14, 14], [6, 6], num_prefix_tokens=1)[:, 1:]
    torch.testing.assert_close(model.pos_embed, nn.Parameter(expected))
    features = small_model(features_only=True, out_indices=(0, 1))
    report = vitzoo.load_checkpoint(features, path)
    assert not any(key.startswith('blocks.2') for key in report.loaded)
    assert torch.equal(features.model.blocks[1].gather.v.weight, state['blocks.1.attn.qkv.weight'][96:])
    compressed = small_model(head='compressed')
    vitzoo.load_checkpoint(compressed, path)


@pytest.mark.parametrize('change, message', [
    (lambda state: state.pop('blocks.1.attn.qkv.weight'), r'3 missing|4 missing'),
    (lambda state: state.update({'blocks.0.ls1.gamma': torch.ones(48)}), r'1 unexpected'),
    (lambda state: state.update(pos_embed=torch.zeros(1, 197, 32)), r'pos_embed|pos_compressed'),
    (lambda state: state.update({'blocks.2.attn.qkv.weight': torch.zeros(150, 48)}), r'another shape'),
], ids=['missing', 'layer scale', 'width', 'shape'])
def test_vit_that_does_not_fit_is_refused(change, message):
    state, model = vit_state(), small_model()
    before = copy.deepcopy(model.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        vitzoo.load_checkpoint(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_own_file_of_other_classes():
    state = build(num_classes=7).state_dict()
    with pytest.raises(ValueError, match='classifies 7 classes'):
        vitzoo.load_checkpoint(build(), state)
    model = build()
    report = vitzoo.load_checkpoint(model, state, reset_head=True)
    assert set(report.new) == {'head.weight', 'head.bias', 'head_lookup.weight', 'head_lookup.bias'}


# ---- options

@pytest.mark.parametrize('kwargs, message', [
    (dict(compressed_size=0), r'compressed_size=0'),
    (dict(compressed_size=(3, 4, 5)), r'compressed_size=\(3, 4, 5\)'),
    (dict(train_sizes=()), r'train_sizes=\(\)'),
    (dict(train_sizes=5), r'train_sizes=5'),
    (dict(train_sizes=(3, 0)), r'train_sizes=0'),
    (dict(img_size=0), r'img_size=0'),
    (dict(patch_size=-16), r'patch_size=-16'),
    (dict(num_heads=3), r'embed_dim=128, num_heads=3'),
    (dict(num_heads=0), r'num_heads=0'),
    (dict(depth=0), r'depth=0'),
    (dict(mlp_ratio=0.), r'mlp_ratio=0'),
    (dict(lookup_mlp_ratio=-1.), r'lookup_mlp_ratio=-1'),
    (dict(head='lookup'), r"head='lookup': expected 'both' or 'compressed'"),
    (dict(global_pool='token'), r"global_pool='token'"),
    (dict(global_pool=''), r"global_pool='' with num_classes=1000"),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_forms_train(form):
    model = build(num_classes=3, **form).train()
    model(image(33, 70)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_other_patch_sizes():
    model = build(patch_size=(8, 4), img_size=(30, 16))
    assert model.grid_size == (4, 4)
    with torch.no_grad():
        maps = model.forward_intermediates(image(17, 17), intermediates_only=True)
        assert [m.shape for m in maps] == [(2, 128, 3, 5)] * 4


def test_learns():
    model = build(num_classes=4, drop_path_rate=0.1, train_sizes=(3, 5)).train()
    model.set_separate_logits()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 4
    losses = []
    for _ in range(20):
        loss = sum(F.cross_entropy(logits, labels) for logits in model(x)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize('head', ['both', 'compressed'])
def test_files_with_the_former_names_of_the_stem(head):
    """All its convolutions were once in a Sequential called `proj`."""
    model = timm.create_model('lookupvit_micro')
    state = model.state_dict()
    last = len(model.patch_embed.stem)
    rename = {'patch_embed.proj.': f'patch_embed.proj.{last}.', 'patch_embed.stem.': 'patch_embed.proj.'}
    former = {re.sub(r'^patch_embed\.(proj|stem)\.', lambda match: rename[match[0]], name): value for name, value in state.items()}
    assert 'patch_embed.proj.0.conv.weight' in former
    other = timm.create_model('lookupvit_micro', head=head)
    report = vitzoo.load_checkpoint(other, former)
    assert not report.new and report.renamed['patch_embed.proj.0.conv.weight'] == 'patch_embed.stem.0.conv.weight'
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_what_is_called_proj_is_a_layer():
    assert {type(m) for path, m in timm.create_model('lookupvit_micro').named_modules() if path.endswith('proj')} == {nn.Linear, nn.Conv2d}
