"""STViT-DeiT against plain loops, DeiT and the published operations. No published code or weights exist to compare with."""
import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import Attention, resample_abs_pos_embed
from timm.models import group_parameters
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import vitzoo
from vitzoo.models.stvit_deit import (
    CrossAttention,
    Generation,
    SpatialPool,
    weighted_means,
    window_edges,
    window_of_position,
    window_tables,
)

MICRO = 'stvit_deit_micro'


def micro(**kwargs):
    """In float64 and eval mode, every parameter far from its initial value."""
    model = timm.create_model(MICRO, dtype=torch.float64, **kwargs).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.ndim == 2 else 0.1) + (p.ndim == 1) * (p.mean() > 0.5))
    return model


def generation_layers(model):
    return [block for block in model.blocks if isinstance(block, Generation)]


def base_layers(model):
    return model.blocks[:list(model.blocks).index(generation_layers(model)[0])]


def semantic_layers(model):
    return model.blocks[list(model.blocks).index(generation_layers(model)[-1]) + 1:]


# ---- plain references: loops over windows and heads, no reshapes

def plain_pool(pool, x, height, width):
    """Pooling of the map x (B, N, C): pad by whole windows where the map has less, and take each window by itself."""
    B, _, C = x.shape
    x = x.reshape(B, height, width, C)
    top, left = window_edges(height, pool.grid[0]), window_edges(width, pool.grid[1])
    means = []
    for i in range(pool.grid[0]):
        for j in range(pool.grid[1]):
            window = x[:, top[i]:top[i + 1], left[j]:left[j + 1]]
            if not window.numel():
                means.append(torch.zeros_like(x[:, 0, 0]))
                continue
            y = F.conv2d(window.permute(0, 3, 1, 2), pool.conv.weight, pool.conv.bias, padding=1, groups=C).permute(0, 2, 3, 1)
            y = F.gelu(F.layer_norm(y, (C,), pool.norm.weight, pool.norm.bias, pool.norm.eps))
            weight = (y @ pool.score.weight[0]).flatten(1).softmax(1)
            means.append((weight[..., None] * window.flatten(1, 2)).sum(1))
    return torch.stack(means, 1)


def published_pool(pool, x):
    """The pooling at 224 as the authors describe it: 14x14 padded by 1 to 16x16, 4x4 windows of 4x4, -100 on the padding."""
    B, _, C = x.shape
    x = F.pad(x.reshape(B, 14, 14, C), (0, 0, 1, 1, 1, 1))
    padding = F.pad(torch.zeros(14, 14), (1, 1, 1, 1), value=-100.).to(x)
    means = []
    for i in range(0, 16, 4):
        for j in range(0, 16, 4):
            window = x[:, i:i + 4, j:j + 4]
            y = F.conv2d(window.permute(0, 3, 1, 2), pool.conv.weight, pool.conv.bias, padding=1, groups=C).permute(0, 2, 3, 1)
            score = pool.score(F.gelu(pool.norm(y)))[..., 0] + padding[i:i + 4, j:j + 4]
            means.append((score.flatten(1).softmax(1)[..., None] * window.flatten(1, 2)).sum(1))
    return torch.stack(means, 1)


def plain_attention(block, queries, context):
    """Pre-norm attention, head by head."""
    queries, context = block.norm1(queries), block.norm1(context)
    C, heads = queries.shape[-1], block.attn.num_heads
    d = C // heads
    weight, bias = block.attn.qkv.weight.reshape(3, heads, d, C), block.attn.qkv.bias.reshape(3, heads, d)
    out = []
    for h in range(heads):
        q = queries @ weight[0, h].T + bias[0, h]
        k, v = (context @ weight[i, h].T + bias[i, h] for i in (1, 2))
        out.append((q @ k.transpose(1, 2) / d ** 0.5).softmax(-1) @ v)
    return block.ls1(torch.cat(out, -1) @ block.attn.proj.weight.T + block.attn.proj.bias)


def plain_mlp(block, x):
    return x + block.ls2(block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))))


def plain_semantic_tokens(model, image, height, width):
    """Image tokens after the base layers to semantic tokens before the final norm."""
    first, second, *more = generation_layers(model)
    pooled = plain_pool(first.pool, image, height, width)
    tokens = plain_mlp(first, pooled + plain_attention(first, pooled, image))
    start = tokens + second.centres
    tokens = plain_mlp(second, start + plain_attention(second, start, torch.cat([tokens, image], 1)))
    for block in more:
        tokens = plain_mlp(block, tokens + plain_attention(block, tokens, torch.cat([tokens, image], 1)))
    for block in semantic_layers(model):
        tokens = plain_mlp(block, tokens + plain_attention(block, tokens, tokens))
    return tokens


# ---- windows and pooling

@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 7])
def test_windows_are_equal_and_symmetric(count):
    for length in range(1, 60):
        edges = window_edges(length, count)
        sizes = [end - start for start, end in zip(edges[:-1], edges[1:], strict=True)]
        assert len(sizes) == count and edges[0] == 0 and edges[-1] == length
        assert min(sizes) >= length // count and max(sizes) == -(-length // count)
        if length % 2 == 0 or count % 2:  # else two windows meet in the middle position
            assert sizes == sizes[::-1]


def test_published_windows():
    """Four of four positions each on 14 padded by 1 at both ends."""
    assert window_edges(14, 4) == [0, 3, 7, 11, 14]
    index, mask = (table.numpy() for table in window_tables(14, 14, 4, 4))
    assert mask.shape == (16, 4, 4) and (mask == 0).sum((1, 2)).tolist() == [9, 12, 12, 9] + 2 * [12, 16, 16, 12] + [9, 12, 12, 9]
    padded = np.pad(np.arange(196).reshape(14, 14), 1, constant_values=196)
    published = [set(padded[i:i + 4, j:j + 4].flat) for i in range(0, 16, 4) for j in range(0, 16, 4)]
    assert [set(window) for window in index.reshape(16, 16)] == published


@pytest.mark.parametrize('size', [(14, 14), (9, 23), (4, 4), (3, 7), (1, 1), (50, 80)])
@pytest.mark.parametrize('grid', [(4, 4), (3, 5), (1, 1)])
def test_every_position_is_in_one_window(size, grid):
    N = size[0] * size[1]
    index, mask = (table.numpy() for table in window_tables(*size, *grid))
    assert index.dtype == np.int64 and mask.dtype == np.float32 and index.shape == (mask.size,)
    assert ((index == N) == (mask.ravel() == -100)).all() and set(np.unique(mask)) <= {0, -100}
    assert sorted(index[index < N]) == list(range(N))
    owner = window_of_position(*size, *grid).numpy()
    assert owner.shape == (N,)
    for m, row in enumerate(index.reshape(len(mask), -1)):
        assert (owner[row[row < N]] == m).all()


@pytest.fixture
def pool():
    pool = SpatialPool(8, (4, 4), nn.LayerNorm, dtype=torch.float64)
    for p in pool.parameters():
        nn.init.normal_(p)
    return pool


def test_pooling_at_the_published_size(pool):
    x = torch.randn(2, 196, 8, dtype=torch.float64)
    torch.testing.assert_close(pool(x, (14, 14)), published_pool(pool, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('size', [(14, 14), (9, 23), (16, 16), (5, 4), (2, 7), (1, 1)])
def test_pooling_against_plain_loops(pool, size):
    x = torch.randn(2, size[0] * size[1], 8, dtype=torch.float64, requires_grad=True)
    y, expected = pool(x, size), plain_pool(pool, x, *size)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(y)
    inputs = [x, *pool.parameters()]
    torch.testing.assert_close(torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction),
                               rtol=1e-9, atol=1e-11)


def test_equal_scores_give_plain_means(pool):
    nn.init.zeros_(pool.score.weight)
    x = torch.randn(2, 14, 14, 8, dtype=torch.float64)
    edges = window_edges(14, 4)
    means = [x[:, a:b, c:d].mean((1, 2)) for a, b in zip(edges, edges[1:], strict=False) for c, d in zip(edges, edges[1:], strict=False)]
    torch.testing.assert_close(pool(x.flatten(1, 2), (14, 14)), torch.stack(means, 1))


def test_what_lies_in_padding_does_not_matter():
    mask = window_tables(14, 14, 4, 4)[1].flatten(1)
    windows, scores = torch.randn(2, 16, 16, 8), torch.randn(2, 16, 16) + mask
    other = torch.where(mask[..., None] < 0, 1e6 * torch.randn_like(windows), windows)
    torch.testing.assert_close(weighted_means(other, scores), weighted_means(windows, scores), rtol=0, atol=0)


# ---- semantic tokens

@pytest.mark.parametrize('size', [(224, 224), (100, 330), (64, 64), (17, 1)])
@pytest.mark.parametrize('kwargs', [
    {}, dict(init_values=0.1), dict(num_generation=4, num_base=1), dict(num_semantic=(2, 5)),
], ids=str)
def test_semantic_tokens_against_plain_loops(size, kwargs):
    model = micro(**kwargs)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    height, width = -(-size[0] // 16), -(-size[1] // 16)
    with torch.no_grad():
        image = base_layers(model)(model.embed(x).image)
        expected = model.norm(plain_semantic_tokens(model, image, height, width))
        found = model.forward_features(x)
    assert found.shape == (2, 10 if 'num_semantic' in kwargs else 16, 128)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_order_of_the_context_does_not_matter():
    block = generation_layers(micro())[1]
    image, tokens = torch.randn(2, 30, 128, dtype=torch.float64), torch.randn(2, 16, 128, dtype=torch.float64)
    with torch.no_grad():
        y = block(image, tokens, (5, 6))
        z = block(image[:, torch.randperm(30)], tokens, (5, 6))
    torch.testing.assert_close(z, y, rtol=1e-12, atol=1e-12)


def test_image_tokens_stay_as_they_are_once_there_are_semantic_tokens():
    """All that comes after the base layers reads them and nothing else: changing later layers changes no earlier map."""
    model = micro(recover=True)
    seen = []
    for block in generation_layers(model):
        block.register_forward_hook(lambda module, args, out: seen.append(args[0].clone()))
    model.recover.register_forward_hook(lambda module, args, out: seen.append(args[0].clone()))
    x = torch.randn(1, 3, 70, 50, dtype=torch.float64)
    with torch.no_grad():
        last_base = model.forward_intermediates(x, indices=[1], output_fmt='NLC', intermediates_only=True)[0]
        seen.clear()
        model.forward_intermediates(x)
    assert len(seen) == 2 + 4
    for image in seen:
        torch.testing.assert_close(image, last_base, rtol=0, atol=0)


def test_cross_attention_of_the_same_tokens_is_timm_s():
    for qkv_bias in (True, False):
        cross, plain = (cls(32, 4, qkv_bias=qkv_bias, dtype=torch.float64) for cls in (CrossAttention, Attention))
        cross.load_state_dict(plain.state_dict())
        x = torch.randn(2, 7, 32, dtype=torch.float64)
        torch.testing.assert_close(cross(x, x), plain(x))


def test_without_token_reduction_it_is_deit_with_mean_pooling():
    """The generation layers' weights as ordinary layers on the image tokens: timm's ViT, whose table is for the same size."""
    model = micro()
    plain = VisionTransformer(class_token=False, global_pool='avg', fc_norm=False, embed_dim=128, depth=6, num_heads=4, dtype=torch.float64)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    for i, block in enumerate(model.blocks):
        if isinstance(block, Generation):
            model.blocks[i] = Block(128, 4, qkv_bias=True, dtype=torch.float64)
            model.blocks[i].load_state_dict(plain.blocks[i].state_dict())
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain.eval()(x))


# ---- maps of the semantic layers

def test_a_position_has_the_token_of_its_window():
    model = micro()
    x = torch.randn(2, 3, 90, 130, dtype=torch.float64)
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(x, indices=[5], norm=True, output_fmt='NHWC')
    rows, cols = window_edges(6, 4), window_edges(9, 4)
    for i in range(4):
        for j in range(4):
            part = maps[0][:, rows[i]:rows[i + 1], cols[j]:cols[j + 1]]
            torch.testing.assert_close(part, tokens[:, 4 * i + j, None, None].expand_as(part), rtol=0, atol=0)


def test_recovered_maps_against_plain_loops():
    model = micro(recover=True)
    x = torch.randn(2, 3, 90, 130, dtype=torch.float64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, output_fmt='NLC')
        image, block = maps[1], model.recover
        for i in range(2, 6):
            tokens = copy.deepcopy(model)
            tokens.prune_intermediate_layers([i], prune_norm=True)
            tokens = tokens.forward_features(x)
            torch.testing.assert_close(maps[i], plain_mlp(block, image + plain_attention(block, image, tokens)), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(final, model.norm(tokens), rtol=0, atol=0)


def test_layouts_of_maps_and_timm_s_older_name_for_them():
    model = micro()
    x = torch.randn(2, 3, 70, 40, dtype=torch.float64)
    with torch.no_grad():
        maps = {fmt: model.forward_intermediates(x, output_fmt=fmt, intermediates_only=True) for fmt in ('NCHW', 'NHWC', 'NLC')}
        assert [m.shape for m in maps['NCHW']] == 6 * [(2, 128, 5, 3)] and all(m.is_contiguous() for m in maps['NCHW'])
        for nchw, nhwc, nlc in zip(*maps.values(), strict=True):
            assert torch.equal(nchw, nhwc.permute(0, 3, 1, 2)) and torch.equal(nlc, nhwc.flatten(1, 2))
        for reshape in (True, False):
            for a, b in zip(model.get_intermediate_layers(x, 3, reshape), maps['NCHW' if reshape else 'NLC'][-3:], strict=True):
                assert torch.equal(a, b)


def test_features_have_a_recover_block_where_they_need_one():
    features = timm.create_model('stvit_deit_small', features_only=True)
    assert features.feature_info.out_indices == (2, 5, 8, 11) and features.feature_info.reduction() == [16] * 4
    assert features.model.recover is not None
    assert timm.create_model(MICRO, features_only=True, recover=False).model.recover is None
    assert timm.create_model(MICRO, features_only=True, out_indices=(0, 1)).model.recover is None
    assert timm.create_model(MICRO, features_only=True, out_indices=(2,)).model.recover is not None
    assert timm.create_model(MICRO).recover is None


def test_recover_and_centres_follow_their_depth_in_layer_decay():
    model = timm.create_model(MICRO, recover=True)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    for new, layer in (('blocks.2.pool.conv.weight', 2), ('blocks.3.centres', 3)):
        assert groups[new] == groups[f'blocks.{layer}.norm1.weight'] == layer + 1
    assert groups['recover.norm1.weight'] > groups['blocks.5.norm1.weight']


# ---- start from DeiT

SMALL_DEIT = dict(embed_dim=128, depth=6, num_heads=4)


def deit(**kwargs):
    """A timm DeiT of the micro size with weights of its own."""
    model = VisionTransformer(**{**SMALL_DEIT, **kwargs})
    for p in model.parameters():
        nn.init.normal_(p)
    return model.state_dict()


NEW = {'blocks.2.pool.conv.weight', 'blocks.2.pool.conv.bias', 'blocks.2.pool.norm.weight', 'blocks.2.pool.norm.bias',
       'blocks.2.pool.score.weight', 'blocks.3.centres'}


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'model': s}, lambda s: {f'module.{k}': v for k, v in s.items()}],
                         ids=['bare', 'as published', 'parallel'])
def test_starts_from_deit(wrap):
    state, model = deit(), timm.create_model(MICRO)
    before = copy.deepcopy(model.state_dict())
    report = vitzoo.load_checkpoint(model, wrap(state))
    after = model.state_dict()
    assert set(report.new) == NEW and all(torch.equal(after[key], before[key]) for key in NEW)
    assert set(report.loaded) == set(after) - NEW and not report.renamed
    prefix = 'module.' if 'module.cls_token' in report.dropped else ''
    assert sorted(report.dropped) == [f'{prefix}cls_token', 'pos_embed[:, 0]']
    assert torch.equal(after['pos_embed'], state['pos_embed'][:, 1:])
    assert all(torch.equal(after[key], state[key]) for key in report.loaded if key != 'pos_embed')


def test_starts_from_deit_by_timm(tmp_path):
    state = deit()
    save_file(state, tmp_path / 'deit.safetensors')
    for features_only in (False, True):
        model = timm.create_model(MICRO, pretrained=True, features_only=features_only,
                                  pretrained_cfg_overlay=dict(file=str(tmp_path / 'deit.safetensors')))
        model = model.model if features_only else model
        assert torch.equal(model.blocks[2].attn.qkv.weight, state['blocks.2.attn.qkv.weight'])
        assert torch.equal(model.pos_embed, state['pos_embed'][:, 1:])


def test_features_start_from_deit():
    features = timm.create_model(MICRO, features_only=True)
    report = vitzoo.load_checkpoint(features, deit())
    new = {name.removeprefix('model.') for name in report.new}
    assert {name for name in new if not name.startswith('recover.')} == NEW
    assert {'norm.weight', 'head.weight', 'cls_token'} <= set(report.dropped) and any(name.startswith('recover.') for name in new)
    base = timm.create_model(MICRO, features_only=True, out_indices=(1,))
    assert not vitzoo.load_checkpoint(base, deit()).new


def test_layer_scales_that_deit_lacks_are_new():
    report = vitzoo.load_checkpoint(timm.create_model(MICRO, init_values=1e-5), deit())
    assert {name for name in report.new if name not in NEW} == {f'blocks.{i}.ls{k}.gamma' for i in (2, 3, 4, 5) for k in (1, 2)}


def test_deit_for_a_larger_image_is_resampled():
    state, model = deit(img_size=384), timm.create_model(MICRO)
    vitzoo.load_checkpoint(model, state)
    torch.testing.assert_close(model.pos_embed.data, resample_abs_pos_embed(state['pos_embed'][:, 1:], [14, 14], num_prefix_tokens=0))
    model = timm.create_model(MICRO, img_size=384)
    vitzoo.load_checkpoint(model, state)
    assert torch.equal(model.pos_embed.data, state['pos_embed'][:, 1:])


@pytest.mark.parametrize('state, message', [
    (lambda: {**deit(), 'dist_token': torch.zeros(1, 1, 128)}, 'distilled'),
    (lambda: deit(embed_dim=192), 'another size'),
    (lambda: deit(depth=7), 'blocks.6.norm1.weight'),
    (lambda: deit(num_classes=10), 'reset_head'),
    (lambda: deit(init_values=0.1), r'unexpected \(blocks.0.ls1.gamma'),
    (lambda: {k: v for k, v in deit().items() if k != 'blocks.3.attn.qkv.weight'}, 'missing'),
    (lambda: {k: v for k, v in deit().items() if k != 'pos_embed'}, 'missing'),
], ids=['distilled', 'width', 'depth', 'classes', 'layer scale', 'incomplete', 'no positions'])
def test_what_does_not_fit_is_refused(state, message):
    model = timm.create_model(MICRO)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        vitzoo.load_checkpoint(model, state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_no_weights_were_published():
    with pytest.raises(ValueError, match='None were published'):
        timm.create_model('stvit_deit_small', pretrained=True)


def test_other_families_files_are_refused():
    with pytest.raises(ValueError, match='super-token'):
        vitzoo.load_checkpoint(timm.create_model(MICRO), {'layers.0.blocks.0.attn.stoken_refine.qkv.weight': torch.zeros(1)})


def test_a_classifier_s_file_starts_a_dense_model_and_the_reverse():
    classifier, dense = timm.create_model(MICRO), timm.create_model(MICRO, features_only=True)
    report = vitzoo.load_checkpoint(dense, classifier.state_dict())
    recover = {name for name, _ in dense.model.named_parameters() if name.startswith('recover.')}
    assert {name.removeprefix('model.') for name in report.new} == recover and len(recover) == 12 and 'head.weight' in report.dropped
    whole = timm.create_model(MICRO, recover=True)
    report = vitzoo.load_checkpoint(classifier, whole.state_dict())
    assert set(report.dropped) == recover and not report.new
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in classifier.state_dict().items())
    report = vitzoo.load_checkpoint(dense, whole.state_dict())
    assert not report.new
    assert torch.equal(dense.model.recover.norm2.weight, whole.recover.norm2.weight)
    incomplete = {key: value for key, value in whole.state_dict().items() if key != 'recover.attn.qkv.weight'}
    with pytest.raises(ValueError, match='missing'):
        vitzoo.load_checkpoint(dense, incomplete)


# ---- options, numbers

@pytest.mark.parametrize('kwargs, message', [
    (dict(num_semantic=0), r'num_semantic=0'),
    (dict(num_semantic=(2, 3, 4)), r'num_semantic=\(2, 3, 4\).*pair'),
    (dict(num_generation=1), r'num_generation=1'),
    (dict(num_base=0), r'num_base=0'),
    (dict(depth=3), r'depth=3'),
    (dict(num_heads=3), r'num_heads=3'),
    (dict(mlp_ratio=0), r'mlp_ratio=0'),
    (dict(img_size=8), r'img_size=8'),
    (dict(global_pool='catavgmax'), r"global_pool='catavgmax': expected"),
    (dict(global_pool='token'), r"global_pool='token': expected"),
    (dict(proj_drop_rate=1.), r'proj_drop_rate=1.0'),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(MICRO, **kwargs)


@pytest.mark.parametrize('kwargs', [
    dict(num_semantic=(3, 7)), dict(num_generation=3), dict(init_values=1e-4, recover=True),
    dict(img_size=(128, 96), patch_size=8, qkv_bias=False, attn_drop_rate=0.1, proj_drop_rate=0.1, pos_drop_rate=0.1),
], ids=str)
def test_options_train_at_any_size(kwargs):
    model = timm.create_model(MICRO, num_classes=4, **kwargs).train()
    for size in [(64, 96), (33, 130), (1, 1)]:
        model.zero_grad()
        model(torch.randn(2, 3, *size)).square().mean().backward()
        if model.recover is not None:
            model.forward_intermediates(torch.randn(2, 3, *size), indices=[5])[1][0].square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('global_pool, pool', [
    ('avg', lambda x: x.mean(1)), ('max', lambda x: x.amax(1)), ('avgmax', lambda x: (x.mean(1) + x.amax(1)) / 2), ('', lambda x: x)])
def test_pooling_of_the_tokens(global_pool, pool):
    model = timm.create_model(MICRO, num_classes=3, global_pool=global_pool).eval()
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        tokens = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), pool(tokens))
        assert model(x).shape == ((2, 16, 3) if global_pool == '' else (2, 3))


def test_what_timm_notes_of_a_new_classifier_builds_the_model_again():
    """timm's `save_for_hf` writes it down, and `create_model` takes it from there."""
    model = timm.create_model(MICRO, num_semantic=5)
    model.reset_classifier(7, 'max')
    again = timm.create_model(MICRO, num_classes=7, global_pool='max', **getattr(model, '_model_args', {}))
    again.load_state_dict(model.state_dict())


def test_position_table_is_timm_s():
    model = timm.create_model(MICRO).eval()
    plain = VisionTransformer(class_token=False, global_pool='avg', dynamic_img_size=True, dynamic_img_pad=True, **SMALL_DEIT).eval()
    plain.load_state_dict({key: model.state_dict().get(key, value) for key, value in plain.state_dict().items()})
    for size in [(224, 224), (448, 112), (100, 130), (1, 1)]:
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model.embed(x).image, plain._pos_embed(plain.patch_embed(x)))


def test_table_may_be_resampled_once():
    """timm's `set_input_size`, which spares the resampling in each forward pass (and in an exported graph)."""
    model = timm.create_model(MICRO).eval()
    x = torch.randn(1, 3, 80, 136)
    with torch.no_grad():
        y = model(x)
        model.set_input_size((80, 144))
        assert model.pos_embed.shape == (1, 5 * 9, 128)
        torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize('name, params, recover', [
    ('tiny', 5_722_600, 444_864), ('small', 22_061_032, 1_774_464), ('base', 86_588_392, 7_087_872), ('micro', 1_446_120, 198_272)])
def test_number_of_parameters(name, params, recover):
    """Against DeiT: no class token and no position of one (2 C), but the pooling's score (13 C) and the centres (16 C)."""
    with torch.device('meta'):
        model, dense = (timm.create_model(f'stvit_deit_{name}', recover=r) for r in (False, True))
    assert sum(p.numel() for p in model.parameters()) == params
    assert sum(p.numel() for p in dense.parameters()) == params + recover
    if name != 'micro':
        with torch.device('meta'):
            plain = timm.create_model(f'deit_{name}_patch16_224')
        assert params - sum(p.numel() for p in plain.parameters()) == (13 + 16 - 2) * model.embed_dim


@pytest.mark.parametrize('name, kwargs, gmacs', [
    ('small', dict(num_generation=3), 1.97), ('small', dict(num_generation=4), 2.03),
    ('small', dict(num_base=3), 1.56), ('small', dict(num_base=8), 3.30),
    ('small', dict(num_semantic=5), 2.04), ('small', dict(num_semantic=6), 2.20), ('small', dict(num_semantic=7), 2.39),
])
def test_published_operations(name, kwargs, gmacs):
    """The paper's ablations; the last three are the same arithmetic for other counts. Its table: test_numbers.py."""
    with torch.device('meta'):
        model = timm.create_model(f'stvit_deit_{name}', **kwargs).eval()
    assert vitzoo.profile(model, 224).macs / 1e9 == pytest.approx(gmacs, rel=0.005)
