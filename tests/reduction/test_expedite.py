import golden
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import vitzoo
from vitzoo.reduction.method import Tokens, take_rows
from vitzoo.reduction.methods.expedite import Expedite, cluster, nearest
from vitzoo.reduction.restore import reconstruct
from vitzoo.reduction.runner import embed, run_block

LIMIT = 1e-3  # distances are differences of large numbers
CASES = ['deit_small-a4-7x7-dense', 'deit_small-a4-7x7-lowres', 'deit_small-a6-10x10-dense', 'deit_tiny-a3-10x10-rec9']
SIZE = (80, 112)  # 5 x 7 patches


def small(name='deit_tiny_patch16_224', **kwargs):
    kwargs = dict(depth=4, embed_dim=48, num_heads=3, num_classes=5) | kwargs
    model = timm.create_model(name, **kwargs if 'dinov3' in name else dict(img_size=SIZE) | kwargs).eval()
    for n, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif 'gamma' in n:
            torch.nn.init.constant_(p, 0.5)
    return model


def reduced(model, **options):
    return vitzoo.reduce_tokens(model, 'expedite', **{**dict(location=1, clusters=(2, 3), k=4), **options})


def image(*size, batch=2):
    return torch.randn(batch, 3, *(size or SIZE))


def walk(model, x):
    """The tokens behind each block."""
    tokens, result = embed(model, x), []
    for i in range(len(model.blocks)):
        tokens = run_block(model, model.reduction, i, tokens)
        result.append(tokens)
    return result


def maps(model, x, **kwargs):
    return model.forward_intermediates(x, intermediates_only=True, **kwargs)


@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_published_maps(case):
    facts, outputs = golden.load_case(f'expedite/{case}.npz')
    given = facts['kwargs']
    model = timm.create_model(f'deit_{given["size"]}_patch16_224', num_classes=0).eval()
    model.load_state_dict(golden.make_state_dict(facts['entries']))
    reduced(model, location=given['location'], clusters=tuple(given['spixels']), n_iters=given['n_iters'], window=given['window'],
            temperature=given['temp'], k=given['k'], rec_temperature=given['rtemp'], rec_location=given['rec_loc'])
    x = golden.make_input(facts['seed'], facts['shape'])
    (feature, prefix), = maps(model, x, indices=[11], norm=True, return_prefix_tokens=True)
    assert golden.error(feature[:, ::4].numpy(), outputs['feat0']) < LIMIT
    assert golden.error(prefix[:, 0].numpy(), outputs['cls0']) < LIMIT
    assert golden.error(model(x).numpy(), outputs['cls0']) < LIMIT
    tokens = walk(model, x)[given['location'] + 1]
    assert (model.reduction.labels(tokens).numpy() == outputs['hard_labels']).all()


@pytest.mark.parametrize('row', range(4))
def test_published_operators(row):
    facts, outputs = golden.load_case('expedite/ops.npz')
    given = facts['notes']['rows'][row]
    x = golden.make_input(given['feature_seed'], given['feature_shape'])
    grid, clusters = tuple(x.shape[2:]), tuple(given['num_spixels'])
    x = x.flatten(2).transpose(1, 2)
    centres, shares = cluster(x, grid, clusters, given['n_iters'], given['window_size'], given['temperture'])
    assert golden.error(centres.numpy(), outputs[f'centroids{row}']) < LIMIT
    torch.testing.assert_close(shares.sum(1), torch.ones(x.shape[:2]))
    values = torch.from_numpy(golden.fill(f'values{row}', (2, centres.shape[1], 16)))
    full = reconstruct(values, x, centres, given['k'], given['reconstruction_temperture'])
    assert golden.error(full.numpy(), outputs[f'reconstructed{row}']) < LIMIT
    labels = nearest(x, centres)
    assert (labels.numpy() == outputs[f'hard_labels{row}']).all()
    assert golden.error(take_rows(values, labels).numpy(), outputs[f'naive{row}']) < LIMIT


@pytest.mark.parametrize('grid, clusters, window', [((15, 13), (5, 4), 3), ((7, 9), (7, 2), 1), ((3, 46), (2, 14), 5)])
def test_clusters_are_what_the_paper_says(grid, clusters, window):
    """Against the definition; sides that divide, that do not, and one where the place of a patch is a matter of rounding."""
    x = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.double)
    expected = F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, grid), clusters).flatten(2).transpose(1, 2)
    place = F.interpolate(torch.arange(clusters[0] * clusters[1]).view(1, 1, *clusters).float(), grid, mode='nearest').flatten().long()
    apart = [(a[:, None] - a[place]).abs() for a in (torch.arange(clusters[0] * clusters[1]) // clusters[1],
                                                    torch.arange(clusters[0] * clusters[1]) % clusters[1])]
    near = (apart[0] <= window // 2) & (apart[1] <= window // 2)
    for _ in range(3):
        shares = (-0.3 * torch.cdist(expected, x) ** 2).masked_fill(~near, -torch.inf).softmax(1)
        expected = (shares @ x) / shares.sum(2, keepdim=True)
    centres, weights = cluster(x, grid, clusters, 3, window, 0.3)
    torch.testing.assert_close(centres, expected)
    torch.testing.assert_close(weights, shares)


@torch.no_grad()
def test_reconstruction_is_a_sum_over_the_nearest():
    x, centres, values = torch.randn(2, 9, 5), torch.randn(2, 6, 5), torch.randn(2, 6, 4)
    distances = torch.cdist(x, centres) ** 2
    for norm in 1, 2:
        weights = (-0.1 * distances).exp() * (distances <= distances.kthvalue(3, dim=2, keepdim=True).values)
        expected = F.normalize(weights, p=norm, dim=2) @ values
        torch.testing.assert_close(reconstruct(values, x, centres, 3, 0.1, norm), expected)
    assert torch.equal(reconstruct(values, x, centres, 6, 0.1), reconstruct(values, x, centres, 99, 0.1))


@torch.no_grad()
def test_maps_up_to_the_location_are_those_of_the_model():
    plain, model, x = small(), reduced(small()), image()
    model.load_state_dict(plain.state_dict())
    for i, (a, b) in enumerate(zip(maps(plain, x), maps(model, x), strict=True)):
        assert a.shape == b.shape
        assert torch.equal(a, b) == (i <= 1)


@pytest.mark.parametrize('rec_location, counts, last', [
    (None, [35, 35, 6, 6], (5, 7)), (3, [35, 35, 6, 6], (5, 7)), (2, [35, 35, 35, 35], (5, 7)), (-1, [35, 35, 6, 6], (2, 3))])
@torch.no_grad()
def test_where_the_grid_comes_back(rec_location, counts, last):
    model, x = reduced(small(), rec_location=rec_location), image()
    assert [tokens.num_patches for tokens in walk(model, x)] == counts == list(model.reduction.schedule(35, 4))
    first, *_, y = maps(model, x, norm=True)
    assert first.shape[2:] == (5, 7) and y.shape[2:] == last
    if rec_location == 3:  # behind the final norm, as by default
        assert torch.equal(y, maps(reduced(model), x, norm=True)[-1])


@torch.no_grad()
def test_blocks_behind_the_reconstruction_are_dense():
    model, x = reduced(small(), rec_location=2), image()
    tokens = walk(model, x)
    assert torch.equal(tokens[3].x, model.blocks[3](tokens[2].x))
    assert torch.equal(maps(model, x, indices=[2])[0].flatten(2).transpose(1, 2), tokens[2].patches)


@pytest.mark.parametrize('clusters, grid, expected', [
    ((7, 7), (14, 14), (7, 7)), (4, (14, 14), (4, 4)), ((7, 7), (5, 20), (5, 7)), (0.5, (50, 84), (25, 42)), (0.3, (5, 7), (2, 3))])
def test_grid_of_clusters(clusters, grid, expected):
    assert Expedite(clusters=clusters).cluster_grid(grid) == expected


@pytest.mark.parametrize('clusters', [7, (5, 7), 0.99])
@torch.no_grad()
def test_grid_that_is_no_finer_than_the_clusters_stays(clusters):
    plain, model, x = small(), reduced(small(), clusters=clusters), image()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(x), plain(x)) and all(map(torch.equal, maps(model, x), maps(plain, x)))
    assert model.reduction.schedule(35, 4) == (35,) * 4


@pytest.mark.parametrize('kwargs', [
    dict(global_pool='avg', class_token=False), dict(global_pool='map', class_token=False), dict(global_pool='avgmax')])
@torch.no_grad()
def test_pooling_heads_see_each_patch(kwargs):
    model, x = reduced(small('vit_tiny_patch16_224', **kwargs)), image()
    tokens = walk(model, x)[-1]
    y = model.forward_features(x)
    assert y.shape[1] == model.num_prefix_tokens + 35 and model(x).shape == (2, 5)
    least, most = (f(model.norm(tokens.x)[:, model.num_prefix_tokens:], 1, keepdim=True) for f in (torch.amin, torch.amax))
    patches = y[:, model.num_prefix_tokens:]
    assert (patches >= least - 1e-4).all() and (patches <= most + 1e-4).all()  # means of clusters


@torch.no_grad()
def test_class_token_costs_no_reconstruction(monkeypatch):
    model = reduced(small())
    monkeypatch.setattr('vitzoo.reduction.methods.expedite.reconstruct', None)
    assert model.forward_features(image()).shape == (2, 1 + 6, 48)


def test_clusters_of_a_rotary_model_are_in_the_middle_of_their_patches():
    model = reduced(small('vit_small_patch16_dinov3'), location=0, clusters=0.5, n_iters=0, rec_location=2)
    first, clusters, dense, _ = walk(model, image(128, 192))
    centre = model.rope.get_embed((4, 6))[None, None, None]  # of cells of 2 x 2 patches
    torch.testing.assert_close(clusters.rope, centre.expand_as(clusters.rope))
    assert torch.equal(dense.rope, first.rope)


@torch.no_grad()
def test_autocast_leaves_distances_alone():
    """Features far from zero, whose distances bfloat16 does not know."""
    x = 30 + torch.randn(2, 36, 48)
    method, model = Expedite(location=0, clusters=3, temperature=1.), torch.nn.Module()
    step = method.pre(model, 1, Tokens(x, 1, (5, 7)))
    with torch.autocast('cpu', torch.bfloat16):
        same = method.pre(model, 1, Tokens(x, 1, (5, 7)))
        y, _ = method.restore(same.patches, same)
    assert torch.equal(same.x, step.x)
    torch.testing.assert_close(y.float(), method.restore(step.patches, step)[0], rtol=0.02, atol=0)


@pytest.mark.parametrize('options', [{}, dict(rec_location=2), dict(temperature=1e4), dict(k=-1, n_iters=0)])
def test_gradients_are_finite(options):
    model = reduced(small(), **options)
    (model(image()).sum() + sum((m ** 2).sum() for m in maps(model, image()))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and not n.startswith('norm.') or not p.grad.isfinite().all()] == []


@pytest.mark.slow
@torch.no_grad()
def test_one_graph_for_each_size():
    model = reduced(small('vit_small_patch16_dinov3'))
    compiled = torch.compile(lambda x: maps(model, x, indices=1), fullgraph=True, backend='eager')
    for size in SIZE, (64, 96):
        x = image(*size)
        torch.testing.assert_close(compiled(x), maps(model, x, indices=1))


@torch.no_grad()
def test_one_image_and_none():
    model, x = reduced(small()), image(batch=3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    assert maps(model, x[:0])[-1].shape == (0, 48, 5, 7)


@pytest.mark.parametrize('options, message', [
    (dict(location=3), 'location=3.*from 0 to 2'), (dict(location=-1), 'location=-1'), (dict(clusters=0), 'clusters=0'),
    (dict(clusters=(7, -1)), 'clusters'), (dict(clusters=1.5), 'share'), (dict(clusters=(1, 2, 3)), 'clusters'),
    (dict(clusters='7x7'), 'clusters'), (dict(n_iters=-1), 'n_iters'), (dict(window=4), 'odd'), (dict(window=0), 'window'),
    (dict(temperature=-1.), 'temperature'), (dict(temperature=np.nan), 'temperature'), (dict(k=0), 'k=0'),
    (dict(rec_temperature=-1.), 'rec_temperature'), (dict(rec_location=1), 'behind location=1'), (dict(rec_location=4), 'rec_location=4'),
    (dict(rec_location=-2), 'rec_location=-2')])
def test_bad_options(options, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        reduced(model, **options)
    assert type(model).__name__ == 'VisionTransformer'
