"""One-stage selection: each published preset against loops over tokens, scores, numbers, what is refused, and the way back."""
import math

import pytest
import timm
import torch
from kinds import check_traced

import vitzoo
from vitzoo.reduction.method import Seen
from vitzoo.reduction.methods.select import PRESETS, Select, context, crosses, prefer, rate, with_neighbours
from vitzoo.reduction.runner import embed, run_block

DEPTH, HEADS, GRID = 4, 3, (4, 6)


def build(name='vit_tiny_patch16_224', **kwargs):
    small = dict(depth=DEPTH, embed_dim=48, num_heads=HEADS, img_size=(64, 96), num_classes=7)
    model = timm.create_model(name, **{**small, **kwargs}).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
    return model


def image():
    return torch.randn(2, 3, 64, 96)


def run(model, x):
    """Tokens in front of the first block and behind each one."""
    tokens = [model.reduction.start(model, embed(model, x))]
    for i in range(len(model.blocks)):
        tokens.append(run_block(model, model.reduction, i, tokens[-1]))
    return tokens


def is_near(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


def look(model, x):
    """For each block of a plain model: attention (B, H, N, N), keys (B, H, N, d), and the tokens (B, N, C) in front of its MLP and behind
    it."""
    x, seen = model._pos_embed(model.patch_embed(x)), []
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, 16)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / 4).softmax(-1)
        middle = x + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
        x = middle + block.mlp(block.norm2(middle))
        seen.append((attention, k, middle, x))
    return seen


def best(scores, count):
    """Places of the largest of a list, from 0."""
    return sorted(range(len(scores)), key=lambda j: -scores[j])[:count]


def mean(values):
    return sum(values) / len(values)


def class_row(attention):
    """One image's attention (H, N, N) -> the mean over heads for each patch."""
    return [mean([float(head[0, j]) for head in attention]) for j in range(1, attention.shape[2])]


def columns(attention):
    return [mean([float(a) for head in attention for a in head[:, j]]) for j in range(1, attention.shape[2])]


# presets: each is told by what tokens it has behind the second to last block

def faster_vlm(seen, b, T):
    attention, _, _, x = (t[b] for t in seen[-2])
    return {1 + j for j in best(class_row(attention), T)}, []


def vtc_cls(seen, b, T):
    total = [0] * math.prod(GRID)
    for attention, *_ in seen[:-1]:
        total = [a + c for a, c in zip(total, class_row(attention[b]), strict=True)]
    return {1 + j for j in best(total, T)}, []


def vision_zip(seen, b, T, num_context=5):
    attention, keys, middle, _ = (t[b] for t in seen[-2])
    chosen = {1 + j for j in best([sum(float(head[0, j]) for head in attention) for j in range(1, attention.shape[2])], T)}
    rest = [j for j in range(1, attention.shape[2]) if j not in chosen]
    metric = [keys[:, j].mean(0) for j in range(attention.shape[2])]
    metric = [m / m.norm() for m in metric]
    targets = rest[::len(rest) // num_context][:num_context]
    members = {t: [] for t in targets}
    for j in rest:
        if j not in targets:
            members[max(targets, key=lambda t, j=j: float(metric[j] @ metric[t]))].append(j)
    merged = [middle[t] + (mean([middle[j] for j in members[t]]) if members[t] else 0) for t in targets]
    return chosen, merged


def hiprune(seen, b, T, anchors=0.1):
    middle, last = columns(seen[DEPTH * 3 // 8][0][b]), columns(seen[-2][0][b])
    w, places = GRID[1], range(math.prod(GRID))
    first = set()
    for j in best(middle, round(T * anchors / 5)):
        first |= {min(max(j + step, 0), len(places) - 1) for step in (0, -1, 1, -w, w)}
    registers = best([-1 if j in first else last[j] for j in places], T - len(first))
    return {1 + j for j in {*first, *registers}}, []


@pytest.mark.parametrize('preset, by_hand, T, options', [
    ('faster_vlm', faster_vlm, 11, {}), ('vtc_cls', vtc_cls, 11, {}), ('vision_zip', vision_zip, 7, dict(num_context=5)),
    ('vision_zip', vision_zip, 20, dict(num_context=4)), ('hiprune', hiprune, 16, dict(anchors=0.6)), ('hiprune', hiprune, 9, {})])
@torch.no_grad()
def test_presets_by_hand(preset, by_hand, T, options):
    model, x = build(), image()
    seen, block = look(model, x), model.blocks[-2]
    vitzoo.reduce_tokens(model, 'select', preset=preset, keep=T, **options)
    found = run(model, x)[-2].x
    for b in range(2):
        kept, merged = by_hand(seen, b, T, **options)
        middle = torch.stack([seen[-2][2][b][j] for j in [0, *sorted(kept)]] + merged)
        expected = middle + block.mlp(block.norm2(middle))
        assert len(kept) == T and found.shape[1] == len(expected)
        distance = torch.cdist(expected, found[b])  # the same tokens, in whatever order
        assert max(distance.min(0).values.max(), distance.min(1).values.max()) < 1e-4 * expected.norm(dim=1).min()


def test_presets_are_options():
    """What is given goes before the preset, and a preset says nothing about how many are kept."""
    method = Select(preset='vision_zip', location=1, keep=0.25, merge_rest=False)
    assert (method.location, method.score, method.keep, method.merge_rest) == (1, 'class', 0.25, False)
    for name, options in PRESETS.items():
        assert 'keep' not in options
        for option, value in options.items():
            assert getattr(Select(preset=name), option) == value
    plain = Select()
    assert (plain.location, plain.keep, plain.score, plain.merge_rest, plain.preset) == (None, 0.5, 'class', False, None)


# scores

def test_similarity_by_hand():
    keys = torch.randn(2, 3, 8, 4)
    found = rate('similarity', Seen(keys, keys, keys, None, 0.5, None), num_prefix=2)
    for b in range(2):
        k = [keys[b, :, j].mean(0) for j in range(2, 8)]
        expected = torch.tensor([-mean([float(u @ v / u.norm() / v.norm()) for v in k]) for u in k])
        assert is_near(found[b], expected)


def test_crosses():
    table, (h, w) = crosses(3, 4), (3, 4)
    for j in range(h * w):
        y, x = divmod(j, w)
        inside = {a * w + b for a, b in ((y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)) if 0 <= a < h and 0 <= b < w}
        found = set(table[j].nonzero().flatten().tolist())
        assert found >= inside
        if 0 < x < w - 1 and 0 < y < h - 1:
            assert found == inside
    # at the borders as published: on to the next or the previous row, and to the first or the last patch
    assert table[3].nonzero().flatten().tolist() == [0, 2, 3, 4, 7] and table[8].nonzero().flatten().tolist() == [4, 7, 8, 9, 11]


def test_preferred_ones_come_first():
    scores = torch.tensor([[0.5, 0.1, 0.4, 0.2], [-3., 9., -7., 0.]])
    order = prefer(scores, torch.tensor([[0., 1, 0, 1], [1, 0, 1, 0]])).argsort(1, descending=True)
    assert order.tolist() == [[3, 1, 0, 2], [0, 2, 1, 3]]
    assert not with_neighbours(scores, 0, (2, 2)).any()
    assert with_neighbours(torch.tensor([[0., 0, 0, 0, 1, 0, 0, 0, 0]]), 1, (3, 3)).view(3, 3).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize('length, count', [(5, 5), (5, 1), (11, 4), (12, 4)])
def test_contextual_tokens(length, count):
    weights = context(torch.randn(2, length, 4), count)
    assert weights.shape == (2, count, length)
    assert ((weights > 0).sum(1) == 1).all()  # every token goes to one
    targets = [i * (length // count) for i in range(count)]
    assert (weights[:, range(count), targets] == 1).all()
    others = weights.sum(2) - 1
    assert torch.allclose(others, (others > 0.5).float(), atol=1e-6)


# numbers of tokens

def test_schedule():
    assert Select().schedule(196, 12) == (196,) * 6 + (98,) * 6
    assert Select(keep=1, location=-2).schedule(196, 4) == (196, 196, 1, 1)
    assert Select(keep=1., merge_rest=True).schedule(196, 2) == (196, 196)
    assert Select(keep=54, merge_rest=True, location=0).schedule(196, 2) == (64, 64)
    assert Select(keep=8, merge_rest=True, location=0).schedule(10, 1) == (10,)  # no more contextual tokens than there is rest
    assert Select(keep=300).schedule(196, 2) == (196, 196)
    assert Select(keep=0.001, location=0).schedule(196, 1) == (1,)


SCORES = [dict(score='class'), dict(score='class_sum', sum_from=1), dict(score='column'), dict(score='similarity'),
          dict(score='column', anchors=0.9, anchor_location=0), dict(score='class_sum', anchors=0.9, anchor_location=0)]


@pytest.mark.parametrize('merge_rest', [False, True])
@pytest.mark.parametrize('score', SCORES)
def test_models(score, merge_rest):
    model, x = build(reg_tokens=2, init_values=0.5), image()
    plain = model(x)
    vitzoo.reduce_tokens(model, 'select', keep=9, merge_rest=merge_rest, num_context=4, **score)
    tokens = run(model, x)
    assert tuple(t.num_patches for t in tokens[1:]) == model.reduction.schedule(24, DEPTH)
    assert [tuple(y.shape) for y in model.forward_intermediates(x, intermediates_only=True)] == [(2, 48, 4, 6)] * DEPTH
    restored, _ = model.reduction.restore(tokens[-1].patches, tokens[-1])
    for b in range(2):
        assert torch.equal(restored[b, tokens[-1].history[0].order[b, :9]], tokens[-1].patches[b, :9])
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(vitzoo.restore_tokens(model)(x), plain)


@pytest.mark.parametrize('score', ['column', 'similarity'])
@torch.no_grad()
def test_models_without_class_token(score):
    model, x = build(class_token=False, global_pool='avg'), image()
    with pytest.raises(ValueError, match='class token'):
        vitzoo.reduce_tokens(model, 'select')
    assert vitzoo.reduce_tokens(model, 'select', score=score)(x).shape == (2, 7)
    assert run(model, x)[-1].num_patches == 12


@torch.no_grad()
def test_keeping_all_is_the_plain_model():
    model, x = build(), image()
    plain = model(x)
    assert torch.equal(vitzoo.reduce_tokens(model, 'select', keep=1., score='class_sum')(x), plain)
    assert is_near(vitzoo.reduce_tokens(model, 'select', keep=24, preset='hiprune')(x), plain)


@pytest.mark.parametrize('position', ['mean', 'keep'])
@torch.no_grad()
def test_rotary_positions(position):
    model = timm.create_model('vit_small_patch16_dinov3', depth=DEPTH, embed_dim=48, num_heads=HEADS, img_size=(64, 96)).eval()
    x = image()
    vitzoo.reduce_tokens(model, 'select', keep=9, merge_rest=True, num_context=4, position=position)
    tokens = run(model, x)
    rope, order, last = tokens[0].rope[0, 0, 0], tokens[-1].history[0].order, tokens[-1].rope[0, :, 0]
    sine, cosine = last.chunk(2, dim=-1)
    assert torch.allclose(sine ** 2 + cosine ** 2, torch.ones(()))
    for b in range(2):
        assert torch.equal(last[b, :9], rope[order[b, :9]])
        targets = rope[order[b, 9:]][[0, 3, 6, 9]]  # 15 // 4 apart
        assert torch.equal(last[b, 9:], targets) == (position == 'keep')


@pytest.mark.parametrize('options', [dict(preset='hiprune', anchors=0.9), dict(score='class_sum', merge_rest=True)])
@torch.no_grad()
def test_traced(options):
    model = vitzoo.reduce_tokens(build(), 'select', keep=9, **options)
    check_traced(model, image(), image())


# what is refused

@pytest.mark.parametrize('options, message', [
    (dict(keep=0), 'keep=0'), (dict(keep=-3), 'keep'), (dict(keep=0.), 'keep=0.0.*a share'), (dict(keep=1.5), 'keep=1.5'),
    (dict(keep=True), 'keep=True'), (dict(score='cls'), "score='cls'"), (dict(preset='divprune'), "preset='divprune'"),
    (dict(location=4), 'location=4.*0 to 3'), (dict(location=-5), 'location=-5'), (dict(num_context=0), 'num_context'),
    (dict(anchors=1.5), 'anchors'), (dict(anchors=0.5, anchor_location=2), 'anchor_location=2.*in front of block 2'),
    (dict(anchors=0.5, location=0), 'in front of block 0'), (dict(score='class_sum', sum_from=3), 'sum_from=3'),
    (dict(position='none'), 'position')])
def test_refused(options, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        vitzoo.reduce_tokens(model, 'select', **options)
    assert type(model) is timm.models.VisionTransformer
