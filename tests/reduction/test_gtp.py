"""GTP: what the published code computes, its graph and one step against loops, what it refuses, and the way back."""
import math

import pytest
import timm
import torch
from golden import error, load_case, make_input, make_state_dict
from kinds import check_traced

import vitzoo
from vitzoo.reduction.method import Seen
from vitzoo.reduction.methods.gtp import GTP, SELECTIONS, between, grid_graphs, most_alike, normalised, rate, sparse
from vitzoo.reduction.runner import embed, run_block

CASES = ['deit_small-mixed-p8', 'deit_small-mixed-p8-sparsity0.6', 'deit_small-prune-p8', 'deit_small-semantic-p8',
         'deit_small-spatial-p4-noscale', 'deit_tiny-mean-p6']


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_published(name):
    facts, published = load_case(f'gtp/{name}.npz')
    options = dict(facts['kwargs'])
    size = options.pop('size', 'tiny' if 'tiny' in facts['model'] else 'small')
    model = timm.create_model(f'deit_{size}_patch16_224').eval()
    model.load_state_dict(make_state_dict(facts['entries'], facts['rescale']))
    vitzoo.reduce_tokens(model, 'gtp', **options)
    assert error(model(make_input(facts['seed'], facts['shape'])).numpy(), published['logits']) < 1e-5


def build(name='vit_tiny_patch16_224', **kwargs):
    model = timm.create_model(name, **{**dict(depth=3, embed_dim=48, num_heads=3, img_size=(64, 96), num_classes=7), **kwargs}).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
    return model


def image(*size):
    return torch.randn(2, 3, *(size or (64, 96)))


def last_tokens(model, x):
    tokens = model.reduction.start(model, embed(model, x))
    for i in range(len(model.blocks)):
        tokens = run_block(model, model.reduction, i, tokens)
    return tokens


def is_near(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


# the graph

@pytest.mark.parametrize('h, w', [(1, 1), (1, 5), (4, 6), (5, 3)])
def test_spatial_graph(h, w):
    touch, others = grid_graphs(h, w)
    for a in range(h * w):
        for b in range(h * w):
            distance = max(abs(a // w - b // w), abs(a % w - b % w))
            assert touch[a, b] == (distance == 1) and others[a, b] == (a != b)


@pytest.mark.parametrize('class_token', [True, False])
def test_graph_by_hand(class_token):
    """Thresholds are the published ones: M neighbours, and one more without a class token."""
    M, tokens = 3, embed(model := build(class_token=class_token, global_pool='avg'), image())
    found = GTP(num_neighbours=M, alpha=0.3).start(model, tokens).memory[0]
    for b, x in enumerate(tokens.patches.detach()):
        n = len(x)
        cosine = [[float(x[i] @ x[j] / x[i].norm() / x[j].norm()) for j in range(n)] for i in range(n)]
        graph = torch.zeros(n, n)
        for i in range(n):
            k = (n + class_token) - 1 - M  # the k-th smallest, from 1 on
            threshold = sorted(cosine[i])[k - 1]
            for j in range(n):
                touch = max(abs(i // 6 - j // 6), abs(i % 6 - j % 6)) == 1
                graph[i, j] = i != j and (cosine[i][j] >= threshold or touch)
            assert sum(c >= threshold for j, c in enumerate(cosine[i]) if i != j) == M + (not class_token)
        degree = graph.sum(1)
        assert is_near(found[b], 0.3 * graph / degree.sqrt()[:, None] / degree.sqrt())


def test_no_neighbours():
    # a patch that is alone has no degree to divide by
    assert torch.equal(normalised(torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1))
    assert most_alike(torch.randn(1, 4, 8), 9).all()  # never more than there are


def test_between():
    graph, rows, columns = torch.randn(2, 7, 7), torch.tensor([[3, 1, 0], [6, 2, 2]]), torch.tensor([[5, 1], [0, 4]])
    for g in (graph, graph[:1]):
        found = between(g, rows, columns)
        for b in range(2):
            for i in range(3):
                for j in range(2):
                    assert found[b, i, j] == g[b % len(g), rows[b, i], columns[b, j]]


# what is dropped

def scores_by_hand(selection, attention, q, k):
    """One image: attention (H, N, N) with one prefix token -> a list of scores."""
    H, N, _ = attention.shape
    over = max if selection.endswith('Max') else lambda values: sum(values) / H
    a = attention.tolist()
    diagonal = [over([a[h][j][j] for h in range(H)]) for j in range(1, N)]
    column = [over([sum(a[h][i][j] for i in range(N)) for h in range(H)]) for j in range(1, N)]
    if selection.startswith('CLS'):
        return [over([a[h][0][j] for h in range(H)]) for j in range(1, N)]
    if selection.startswith('IMG'):
        return column
    if selection.startswith('Diag'):
        return diagonal
    if selection.startswith('Mixed'):
        return [d * c for d, c in zip(diagonal, column, strict=True)]
    if selection.startswith('Sum'):
        return [d + c for d, c in zip(diagonal, column, strict=True)]
    rows = [[over([a[h][i][j] for h in range(H)]) for j in range(N)] for i in range(1, N)]

    def cosine(u, v):
        return sum(x * y for x, y in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
    return [-sum(cosine(u, v) for v in rows) for u in rows]


@pytest.mark.parametrize('selection', [s for s in SELECTIONS if s != 'Random'])
def test_selections_by_hand(selection):
    q, k = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4)
    bias = torch.rand(2, 1, 1, 8)
    attention = (q * 0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
    wanted = GTP(selection=selection).want(None, 0)
    assert wanted == ('keys' if selection.startswith('CLS') else 'map')
    seen = Seen(q, k, k, bias, 0.5, attention if wanted == 'map' else None)
    found = rate(selection, seen, num_prefix=1)
    assert is_near(found, torch.tensor([scores_by_hand(selection, attention[b], q[b], k[b]) for b in range(2)]))


def test_random_selection_follows_the_seed():
    model, x = vitzoo.reduce_tokens(build(), 'gtp', num_prop=3, selection='Random'), image()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(model(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize('share', [0, 0.25, 0.6, 0.99, 1])
def test_sparse_attention(share):
    attention = torch.rand(2, 3, 7, 7).softmax(-1)
    found = sparse(attention, share)
    for b in range(2):
        for h in range(3):
            values, K = sorted(attention[b, h].flatten().tolist()), int(49 * (1 - share))
            least = values[K - 1] if K else 0.
            assert torch.equal(found[b, h], torch.where(attention[b, h] >= least, attention[b, h], 0))


@pytest.mark.parametrize('propagation', ['GraphProp', 'Mean', 'None'])
@pytest.mark.parametrize('num_registers', [0, 2])
@torch.no_grad()
def test_steps_by_hand(propagation, num_registers):
    """Three blocks against loops over tokens, with the class token alone and with registers."""
    P, D, alpha = 1 + num_registers, 4, 0.25
    model, image_ = build(reg_tokens=num_registers, init_values=0.5), image()
    start = embed(model, image_)
    graph = GTP(alpha=1., graph_type='Spatial').start(model, start).memory[0][0]
    expected = []
    for x in start.x:
        scale, places = torch.ones(len(x)), list(range(24))
        for block in model.blocks:
            qkv = block.attn.qkv(block.norm1(x)).view(len(x), 3, 3, 16).permute(1, 2, 0, 3)
            attention = (qkv[0] @ qkv[1].transpose(1, 2) / 4 + scale.log()).softmax(-1)
            y = (attention @ qkv[2]).transpose(0, 1).flatten(1)
            x = x + block.ls1(block.attn.proj(y))
            score = [max(float(a[j, j]) for a in attention) * max(float(a[:, j].sum()) for a in attention) for j in range(P, len(x))]
            order = sorted(range(len(score)), key=lambda j, score=score: -score[j])
            kept, gone = order[:-D], order[-D:]
            rows, scales = [*x[:P]], [*scale[:P]]
            for i in kept:
                row, t = x[P + i], scale[P + i]
                if propagation == 'GraphProp':
                    for j in gone:
                        weight = alpha * graph[places[i], places[j]]
                        row, t = row + weight * x[P + j], t + weight * scale[P + j]
                rows.append(row)
                scales.append(t)
            if propagation == 'Mean':
                rows.append(sum(x[P + j] for j in gone) / D)
                scales.append(torch.tensor(1.))
            places = [places[i] for i in kept] + [None]  # a mean is nowhere
            x, scale = torch.stack(rows), torch.stack(scales)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        expected.append(x)
    vitzoo.reduce_tokens(model, 'gtp', num_prop=D, propagation=propagation, graph_type='Spatial', alpha=alpha)
    tokens = last_tokens(model, image_)
    assert is_near(tokens.x, torch.stack(expected))
    assert tokens.num_patches == model.reduction.schedule(24, 3)[-1]


# numbers of tokens

def test_schedule():
    assert GTP().schedule(196, 12) == tuple(196 - 8 * i for i in range(1, 13))  # published: 197 - 12 P at the end, with the class token
    assert GTP(propagation='Mean', num_prop=6).schedule(196, 12)[-1] == 196 - 12 * 5
    assert GTP(num_prop=(3, 0, 2)).schedule(24, 3) == (21, 21, 19)
    assert GTP(num_prop=10).schedule(24, 4) == (14, 4, 1, 1)  # one is left


@pytest.mark.parametrize('propagation', ['GraphProp', 'Mean', 'None'])
@torch.no_grad()
def test_as_many_as_scheduled(propagation):
    for num_prop in (5, 100, (0, 4, 1)):
        model = vitzoo.reduce_tokens(build(), 'gtp', num_prop=num_prop, propagation=propagation)
        assert last_tokens(model, image()).num_patches == model.reduction.schedule(24, 3)[-1]


@torch.no_grad()
def test_off():
    x, model = image(), build()
    plain = model(x)
    for num_prop in (0, (0, 0, 0)):
        assert torch.equal(vitzoo.reduce_tokens(model, 'gtp', num_prop=num_prop)(x), plain)


@torch.no_grad()
def test_scales_need_propagation():
    """Without it nothing goes into a token, and none has a scale."""
    x = image()
    for propagation in ('Mean', 'None'):
        a, b = (vitzoo.reduce_tokens(build(), 'gtp', propagation=propagation, num_prop=4, token_scale=scale) for scale in (True, False))
        b.load_state_dict(a.state_dict())
        assert torch.equal(a(x), b(x)) and last_tokens(a, x).size is None


@torch.no_grad()
def test_scales():
    model, x = build(reg_tokens=2), image()
    size = last_tokens(vitzoo.reduce_tokens(model, 'gtp', num_prop=4), x).size
    assert (size[:, :3] == 1).all() and (size[:, 3:] >= 1).all() and (size > 1).any()
    assert last_tokens(vitzoo.reduce_tokens(model, 'gtp', num_prop=4, token_scale=False), x).size is None


# models and maps

@pytest.mark.parametrize('kwargs', [
    dict(class_token=False, global_pool='avg'), dict(reg_tokens=4, init_values=1e-1), dict(qk_norm=True), dict(dynamic_img_size=True)])
@pytest.mark.parametrize('options', [{}, dict(propagation='Mean'), dict(graph_type='Semantic', selection='CosSimMax'), dict(sparsity=0.5)])
def test_models(kwargs, options):
    model, x = build(**kwargs), image()
    vitzoo.reduce_tokens(model, 'gtp', num_prop=3, **options)
    assert model(x).shape == (2, 7)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(y.shape) for y in maps] == [(2, 48, 4, 6)] * 3
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_kept_tokens_go_back_to_their_places():
    model, x = build(), image()
    vitzoo.reduce_tokens(model, 'gtp', num_prop=5)
    tokens = last_tokens(model, x)
    restored, _ = model.reduction.restore(tokens.patches, tokens)
    places = tokens.memory[1]
    for b in range(2):
        assert torch.equal(restored[b, places[b]], tokens.patches[b])


@pytest.mark.parametrize('position', ['mean', 'none'])
@torch.no_grad()
def test_rotary_positions(position):
    model = timm.create_model('vit_small_patch16_dinov3', depth=3, embed_dim=48, num_heads=3, img_size=(64, 96)).eval()
    x = image()
    plain = model(x)
    vitzoo.reduce_tokens(model, 'gtp', num_prop=4)
    tokens = last_tokens(model, x)
    rope, places = embed(model, x).rope, tokens.memory[1]
    for b in range(2):
        assert torch.equal(tokens.rope[0, b, 0], rope[0, 0, 0, places[b]])
    vitzoo.reduce_tokens(model, 'gtp', num_prop=(4, 0, 0), propagation='Mean', position=position)
    tokens = last_tokens(model, x)
    sine, cosine = tokens.rope[0, :, 0, -1].chunk(2, dim=-1)
    assert torch.allclose(sine ** 2 + cosine ** 2, torch.ones(()))
    if position == 'none':
        assert (sine == 0).all()
    else:
        gone = tokens.history[0].order[:, -4:]
        for b in range(2):
            mean = rope[0, 0, 0, gone[b]].mean(0)
            s, c = mean.chunk(2)
            assert is_near(sine[b], s / (s ** 2 + c ** 2).sqrt()) and is_near(cosine[b], c / (s ** 2 + c ** 2).sqrt())
    assert torch.equal(vitzoo.restore_tokens(model)(x), plain)


@pytest.mark.parametrize('options', [
    dict(propagation='Mean'), pytest.param(dict(selection='CosSimMean', sparsity=0.7), marks=pytest.mark.slow)])
@torch.no_grad()
def test_traced(options):
    model = vitzoo.reduce_tokens(build(), 'gtp', num_prop=3, **options)
    check_traced(model, image(), image())


# what is refused

@pytest.mark.parametrize('options, message', [
    (dict(num_prop=-1), 'num_prop=-1'), (dict(num_prop=[1, 2]), r'num_prop=\(1, 2\).*3 as there are blocks'),
    (dict(sparsity=1.5), 'sparsity'), (dict(alpha=-1.), 'alpha'),
    (dict(selection='CLSAttn'), 'selection'), (dict(propagation='Graph'), 'propagation'),
    (dict(graph_type='None'), "choose 'Mixed'"), (dict(graph_type='mixed'), 'graph_type'), (dict(position='keep'), 'position'),
    (dict(num_neighbours=-1), 'num_neighbours')])
def test_refused(options, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        vitzoo.reduce_tokens(model, 'gtp', **options)
    assert type(model) is timm.models.VisionTransformer


def test_class_attention_needs_a_class_token():
    model = build(class_token=False, global_pool='avg')
    with pytest.raises(ValueError, match='no class token'):
        vitzoo.reduce_tokens(model, 'gtp', selection='CLSAttnMean')
