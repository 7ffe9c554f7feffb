"""Rotary positions when tokens are dropped and merged: each token carries its own, or the mean of those that it is made of."""
from dataclasses import dataclass

import pytest
import torch
from kinds import DEPTH, PAIRS, WITHOUT_CLASS_TOKEN, Looks, build, image, options, reduced

import vitzoo
from vitzoo.reduction import METHODS, Method, Tokens
from vitzoo.reduction.method import mix_positions, take_positions, take_rows, unit_length
from vitzoo.reduction.methods.evit import EViT
from vitzoo.reduction.methods.tome import labels
from vitzoo.reduction.runner import embed, run_block

ROPE = [kind for kind in dict(PAIRS) if getattr(build(kind), 'rope', None) is not None]
WITH_CLASS = [kind for kind in ROPE if kind not in WITHOUT_CLASS_TOKEN]
every_kind = pytest.mark.parametrize('kind', ROPE)


@torch.no_grad()
def run(model, tokens, blocks=range(DEPTH)):
    """The tokens behind each block."""
    found = []
    for i in blocks:
        tokens = run_block(model, model.reduction, i, tokens)
        found.append(tokens)
    return found


def embedded(model, x=None):
    with torch.no_grad():
        tokens = embed(model, (image() if x is None else x).to(next(model.parameters()).dtype))
        return model.reduction.start(model, tokens) if hasattr(model, 'reduction') else tokens


def angles(rope):
    sine, cosine = rope.chunk(2, dim=-1)
    return torch.atan2(sine, cosine)


def assert_close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


def test_kinds_of_rotation_are_covered():
    assert len(ROPE) >= 8 and {'dinov3', 'eva02', 'mixed', 'mrope', 'pe', 'gap', 'grouped', 'post_norm'} <= set(ROPE)
    assert embedded(build('mixed')).rope.shape == (DEPTH, 1, 2, 24, 32) and embedded(build('dinov3')).rope.shape == (1, 1, 1, 24, 32)


# ---- tokens that are kept

@dataclass(frozen=True)
class Keeps(Method):
    """In front of block 1 or behind it, these patches of each image."""
    index: torch.Tensor
    where: str

    def pre(self, model, i, tokens):
        return tokens.take(self.index) if i == 1 and self.where == 'pre' else tokens

    def post(self, model, i, tokens):
        return tokens.take(self.index) if i == 1 and self.where == 'post' else tokens

    def want(self, model, i):
        return 'keys' if self.where == 'post' else None


def attend_among(model, x, kept):
    """timm's blocks on all tokens, where those of each block's `kept`, (B, K) patches, alone are seen: what is behind the last block."""
    tokens = embedded(model, x)
    y = tokens.x
    for i, block in enumerate(model.blocks):
        mask = torch.full((y.shape[0], 1, 1, y.shape[1]), -torch.inf, dtype=y.dtype)
        mask[..., :tokens.num_prefix] = 0
        mask[:, 0, 0, tokens.num_prefix:].scatter_(1, kept[i], 0)
        with torch.no_grad():
            y = block(y, rope=tokens.rope[i % len(tokens.rope)], attn_mask=mask)
    return y


@every_kind
@pytest.mark.parametrize('where', ['pre', 'post'])
def test_kept_tokens_attend_as_they_did(kind, where):
    x, plain = image().double(), build(kind).double()
    index = torch.stack([torch.randperm(24)[:10] for _ in x])
    everything = torch.arange(24).expand(2, -1)
    model = reduced(kind, Keeps(index, where)).double()
    *_, found = run(model, embedded(model, x))
    expected = attend_among(plain, x, [everything, index if where == 'pre' else everything, index])
    P = found.num_prefix
    assert_close(found.x[:, :P], expected[:, :P])
    assert_close(found.patches, take_rows(expected[:, P:], index))


def which(rope, of_patches):
    """The patch that each token is, (B, K), by its positions (depth or 1, B or 1, heads or 1, K, D)."""
    rows, patches = (r.expand(-1, 2, -1, -1, -1).permute(1, 3, 0, 2, 4).flatten(2) for r in (rope, of_patches))
    return torch.cdist(rows, patches).argmin(-1)


@pytest.mark.parametrize('kind', WITH_CLASS)
@pytest.mark.parametrize('method, setting', [('evit', dict(fuse=False))])
def test_methods_that_keep_tokens(kind, method, setting):
    """Which they keep is read from the positions, no two of which are the same."""
    model = build(kind).double()
    vitzoo.reduce_tokens(model, method, **options(method, **setting))
    x = image().double()
    first = embedded(model, x)
    *others, last = [first, *run(model, first)]
    kept = [which(tokens.rope, first.rope) for tokens in others]
    assert [k.shape[1] for k in kept] == [24, 17, 12]
    expected = attend_among(build(kind).double(), x, kept)
    P = last.num_prefix
    assert_close(last.x[:, :P], expected[:, :P])
    assert_close(last.patches, take_rows(expected[:, P:], which(last.rope, first.rope)))


# ---- equal tokens, order

@every_kind
@pytest.mark.parametrize('position', ['mean', 'keep'])
@pytest.mark.parametrize('shared', [False, True], ids=['no_position', 'shared_position'])
@torch.no_grad()
def test_merging_equal_tokens_changes_nothing(kind, position, shared):
    """Patches that are equal in pairs, at no position or at that of their pair."""
    model = build(kind).double()
    if model.pos_embed is not None:
        model.pos_embed.zero_()
    rope = model.rope.get_embed(shape=(4, 6)) if model.dynamic_img_size else model.rope.get_embed()
    if shared:
        rope = rope[..., ::2, :].repeat_interleave(2, dim=-2)
    else:
        sine, cosine = rope.chunk(2, dim=-1)
        rope = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
    model.rope.get_embed = lambda *args, **kwargs: rope
    x = image().double().unflatten(3, (3, 2, 8))[:, :, :, :, :1].expand(-1, -1, -1, -1, 2, -1).reshape(2, 3, 32, 48)
    expected, maps = model.forward_intermediates(x)
    logits = model(x)
    vitzoo.reduce_tokens(model, 'tome', r=[12], position=position)
    assert model.reduction.schedule(24, DEPTH) == (12, 12, 12)
    found = model.forward_intermediates(x, intermediates_only=True)
    for a, b in zip([model(x), *found], [logits, *maps], strict=True):
        assert_close(a, b, 1e-6)  # timm keeps some positions in single precision


@pytest.mark.parametrize('kind, method', [pair for pair in PAIRS if pair[0] in ROPE and pair[1] in ('evit', 'tome')])
@torch.no_grad()
def test_positions_are_not_those_of_the_order(kind, method):
    """Patches that change places together with their positions change places in the result.

    ToMe's two sides stay apart here; those of its later blocks depend on the order, as published.
    """
    model = reduced(kind, method).double()
    tokens = embedded(model)
    order = torch.stack([torch.randperm(12) * 2, torch.randperm(12) * 2 + 1], dim=1).flatten()
    shuffled = tokens.take(order.expand(2, -1))
    a, b = (run(model, t, range(1 if method == 'tome' else DEPTH))[-1] for t in (tokens, shuffled))
    P = tokens.num_prefix
    assert_close(b.x[:, :P], a.x[:, :P])
    assert_close(model.reduction.restore(b.patches, b)[0], model.reduction.restore(a.patches, a)[0][:, order])


# ---- prefix tokens

@pytest.mark.parametrize('kind, method', [pair for pair in PAIRS if pair[0] in ROPE])
def test_prefix_tokens_are_neither_rotated_nor_reduced(kind, method):
    model = reduced(kind, method)
    tokens = embedded(model)
    P = tokens.num_prefix
    for found in run(model, tokens):
        assert found.num_prefix == P == model.num_prefix_tokens and found.x.shape[1] > P
        assert found.rope.shape[3] == found.num_patches and found.rope.isfinite().all()
        length = sum(part ** 2 for part in found.rope.chunk(2, dim=-1))
        assert length.max() < 1 + 1e-5  # less where opposite ones have no mean
        if found.size is not None:
            assert (found.size[:, :P] == 1).all()


@every_kind
def test_what_is_rotated(kind):
    seen = []

    class Keys(Looks):
        def mid(self, model, i, tokens, what):
            seen.append((model.blocks[i].attn, what))
            return tokens
    model = reduced(kind, Keys('keys'))
    with torch.no_grad():
        model(image())
        P = model.num_prefix_tokens
        for attn, what in seen:
            plain = attn.k_norm(what.content).repeat_interleave(what.k.shape[1] // what.content.shape[1], dim=1)
            assert torch.equal(what.k[:, :, :P], plain[:, :, :P])
            assert_close(what.k.norm(dim=-1), plain.norm(dim=-1), 1e-5)
            assert (what.k[:, :, P + 1:] - plain[:, :, P + 1:]).abs().amax((0, 1, 3)).min() > 1e-3  # the first may be at the origin


# ---- what a merged token carries

def test_mean_of_angles():
    angle = torch.rand(3, 2, 1, 5, 6, dtype=torch.double) * 2
    rope = torch.cat([angle.sin(), angle.cos()], dim=-1)
    weights = torch.rand(2, 4, 5, dtype=torch.double)
    mixed = mix_positions(rope, weights)
    assert mixed.shape == (3, 2, 1, 4, 12)
    expected = angles(torch.einsum('bkn,gbhnd->gbhkd', weights, rope))
    assert_close(angles(mixed), expected, 1e-6)
    assert_close(mixed.square().sum(-1), torch.full((3, 2, 1, 4), 6.).double(), 1e-6)
    one = torch.zeros(2, 1, 5)
    one[..., 3] = 0.2
    assert_close(mix_positions(rope, one)[:, :, :, 0], rope[:, :, :, 3], 1e-6)
    same = rope[:, :, :, :1].expand(-1, -1, -1, 5, -1)
    assert_close(mix_positions(same, weights)[:, :, :, 0], rope[:, :, :, 0], 1e-6)


@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16])
@pytest.mark.parametrize('total', [1., 1e-7, 1e-20, 0.])
def test_mean_where_attention_is_small(total, dtype):
    """Still of unit length, and with gradients."""
    angle = torch.linspace(0, 1, 5)[:, None].requires_grad_()
    weights = (torch.ones(1, 1, 5) * total / 5).to(dtype)
    mixed = mix_positions(torch.cat([angle.sin(), angle.cos()], dim=-1)[None, None, None], weights)
    assert_close(angles(mixed).flatten(), torch.tensor([0.5]), 0.01)
    assert_close(mixed.square().sum(-1).flatten(), torch.ones(1), 1e-5)
    mixed.sum().backward()
    assert angle.grad.isfinite().all()


def test_opposite_positions_have_no_mean_and_a_gradient():
    rope = torch.zeros(1, 4, requires_grad=True)
    unit_length(rope).sum().backward()
    assert rope.grad.isfinite().all()


def of(kind, method, **settings) -> tuple[Tokens, Tokens]:
    """What goes into the first block, which alone acts, and what is behind it."""
    model = build(kind).double()
    vitzoo.reduce_tokens(model, method, **settings)
    tokens = embedded(model)
    return tokens, run(model, tokens, range(1))[0]


@pytest.mark.parametrize('kind', WITH_CLASS)
@pytest.mark.parametrize('position', ['mean', 'keep', 'none'])
def test_position_of_a_fused_token(kind, position):
    scores = []

    class Recorded(EViT):
        def mid(self, model, i, tokens, seen):
            scores.append(seen.rows(slice(0, 1)).mean(1)[:, 0, tokens.num_prefix:])
            return super().mid(model, i, tokens, seen)
    tokens, behind = of(kind, Recorded(keep_rate=0.5, locations=(0,), position=position))
    drop, = behind.history
    own = take_positions(tokens.rope, drop.order)
    assert behind.rope.shape[3] == 13 and torch.equal(behind.rope[:, :, :, :12], own[:, :, :, :12])
    fused = behind.rope[:, :, :, 12]
    if position == 'keep':
        assert torch.equal(fused, own[:, :, :, 12])
    elif position == 'mean':
        weights = scores[0].gather(1, drop.order)[None, :, None, 12:, None]
        assert_close(fused, unit_length((own[:, :, :, 12:] * weights).sum(3)), 1e-5)
    else:
        sine, cosine = fused.chunk(2, dim=-1)
        assert (sine == 0).all() and (cosine == 1).all()


@every_kind
@pytest.mark.parametrize('position', ['mean', 'keep'])
def test_position_of_a_merged_token(kind, position):
    tokens, behind = of(kind, 'tome', r=8, position=position)
    P, label = tokens.num_prefix, labels(behind)
    depth, _, heads, _, dim = tokens.rope.shape
    rope = tokens.rope.expand(depth, 2, heads, 24, dim)
    merge, = behind.history
    for b in range(2):
        for token in range(behind.num_patches):
            members = (label[b, P:] == token + P).nonzero()[:, 0]
            assert len(members) == behind.size[b, P + token]
            if position == 'mean':
                expected = unit_length(rope[:, b, :, members].mean(-2))
            else:
                sources = merge.rows[b, merge.num_kept:] - P
                stays = [m for m in members.tolist() if m not in sources]
                expected = rope[:, b, :, stays[0]]
            assert_close(behind.rope[:, b, :, token], expected, 1e-6)


@every_kind
def test_matching_by_content_does_not_look_at_positions(kind):
    found = {}
    for match in ('content', 'rotated'):
        for factor in (1, -1):
            model = build(kind).double()
            vitzoo.reduce_tokens(model, 'tome', r=8, match=match)
            tokens = embedded(model)
            flipped = tokens.rope.flip(3) if factor < 0 else tokens.rope
            found[match, factor] = labels(run(model, tokens._replace(rope=flipped), range(1))[0])
    assert torch.equal(found['content', 1], found['content', -1])
    assert not torch.equal(found['rotated', 1], found['content', 1])


def test_mixed_positions_are_those_of_each_block():
    """A model with positions for each block uses in block i the i-th of a token's."""
    model = build('mixed').double()
    vitzoo.reduce_tokens(model, 'tome', r=[8])
    tokens, = run(model, embedded(model), range(1))
    changed = tokens._replace(rope=torch.cat([tokens.rope[:2], -tokens.rope[2:]]))
    for i, same in ((1, True), (2, False)):
        a, b = (run_block(model, model.reduction, i, t).x for t in (tokens, changed))
        assert torch.equal(a, b) == same or same is False and not torch.allclose(a, b)


def test_methods_say_that_they_know_positions():
    assert {'position'} <= {name for kind in (METHODS['evit'], METHODS['tome']) for name in kind.__dataclass_fields__}
