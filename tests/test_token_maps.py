"""Token maps: what every model and every method promises of them, and what some of them must be."""
import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
import zoo
from timm.layers import set_fused_attn
from torch.export import export

import vitzoo
from vitzoo.layers.recording import Record, cells, listen, record, recording
from vitzoo.models.biformer import BiFormer
from vitzoo.reduction import METHODS, Method, Tokens
from vitzoo.reduction.restore import Drop, left_by

SIZES = ((224, 224), (96, 130))
# options with which a method does something in three blocks; others run by their defaults
OPTIONS = {'evit': dict(locations=(1, 2)), 'tome': dict(r=5), 'gtp': dict(num_prop=4), 'expedite': dict(location=1, clusters=(3, 3)),
           'dynamicvit': dict(locations=(1, 2)), 'sparsifiner': dict(token_keep=0.8, token_locations=(1,)), 'select': dict(location=1)}
micro_model = pytest.mark.parametrize('name', [*filter(zoo.attends, zoo.MICRO)])
every_method = pytest.mark.parametrize('method', METHODS)


def reduced(method):
    model = timm.create_model('deit_tiny_patch16_224', img_size=(96, 128), depth=3, num_classes=5).eval()
    return vitzoo.reduce_tokens(model, method, **OPTIONS.get(method, {}))


def check(maps, body, size):
    """What every map promises."""
    modules = dict(body.named_modules())
    for m in maps:
        assert m.layer in modules
        assert m.labels.dtype == torch.int64 and m.labels.device.type == 'cpu' and m.labels.ndim == 2
        assert all(n * stride >= length > (n - 1) * stride for n, stride, length in zip(m.labels.shape, m.stride, size, strict=True))
        least, most = m.labels.min(), m.labels.max()
        if m.kind == 'counts':
            assert 0 <= least <= most <= m.total
        else:
            assert m.kind in ('groups', 'tokens') and (-1 if m.kind == 'tokens' else 0) <= least <= most < m.total


@micro_model
@pytest.mark.parametrize('size', SIZES)
def test_families(name, size):
    model = zoo.build(name)
    image = torch.randn(3, *size)
    maps = vitzoo.token_map(model, image)
    check(maps, model, size)
    again = vitzoo.token_map(model, image[None])
    assert len(again) == len(maps) and all(a[:3] == b[:3] and (a.labels == b.labels).all() for a, b in zip(again, maps, strict=True))
    if name != 'lookupvit_micro':
        dense = vitzoo.token_map(vitzoo.DenseBackbone(name).eval(), image)
        assert {m.layer for m in dense} <= set(dict(model.named_modules()))


@every_method
def test_methods(method):
    model = reduced(method)
    maps = [m for m in vitzoo.token_map(model, torch.randn(3, 96, 128)) if m.kind == 'tokens']
    check(maps, model, (96, 128))
    assert [m.layer for m in maps] == ['blocks.0', 'blocks.1', 'blocks.2']
    assert [m.total for m in maps] == list(model.reduction.schedule(48, 3))
    assert maps[-1].labels.unique().numel() < 48


def test_features_and_other_transformers():
    """Wrapped transformers, with positions that rotate too; an image that is padded has the maps of its patches."""
    model = timm.create_model('eva02_tiny_patch14_224', img_size=56, depth=3, features_only=True, out_indices=(0, 2)).eval()
    maps = vitzoo.token_map(vitzoo.reduce_tokens(model, 'evit', **OPTIONS['evit']), torch.randn(3, 56, 56))
    check(maps, model.model, (56, 56))
    assert [m.total for m in maps] == [16, 13, 11] and maps[0].stride == (14, 14)
    dense = vitzoo.DenseBackbone('vit_tiny_patch16_224', depth=4).eval()
    maps = vitzoo.token_map(vitzoo.reduce_tokens(dense, 'tome', r=4), torch.randn(3, 60, 100))
    check(maps, dense.model, (60, 100))
    assert [m.total for m in maps] == [24, 20, 16, 12]


@micro_model
def test_outputs_are_the_same_while_recording(name):
    model, image = zoo.build(name), torch.randn(2, 3, 96, 130)
    with torch.no_grad():
        expected = model(image)
        with listen() as records:
            assert torch.equal(model(image), expected)
    assert records and all(len(r.labels) in (1, 2) for r in records)


@every_method
def test_outputs_of_methods_are_the_same_while_recording(method):
    model, image = reduced(method), torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = model(image)
        with listen() as records:
            assert torch.equal(model(image), expected)
    assert records


# ---- the recorder

@pytest.fixture
def forbid_records(monkeypatch):
    """Fails where a forward does anything for a record."""
    def fail(*args, **kwargs):
        raise AssertionError('somebody asked')
    monkeypatch.setattr(Record, '__new__', fail)
    monkeypatch.setattr(Method, 'labels', fail)


def test_nothing_is_recorded_when_nobody_asks(forbid_records):
    for model in zoo.build('svit_micro'), reduced('evit'):
        with torch.no_grad():
            model(torch.randn(1, 3, 96, 128))
        assert not recording()
        with pytest.raises(AssertionError, match='somebody asked'):
            vitzoo.token_map(model, torch.randn(3, 96, 128))
        assert not recording()


def test_recorders_nest():
    module = torch.nn.Identity()
    with listen() as outer:
        record(module, 'windows', cells(4, 4, 2, 2), 4)
        with listen() as inner:
            record(module, 'windows', cells(4, 4, 2, 2), 4)
            record(module, 'windows', cells(4, 4, 2, 2), 4)
        assert recording()
        record(module, 'windows', cells(4, 4, 2, 2), 4)
    assert len(inner) == 2 and len(outer) == 2 and not recording()


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in ('svit_micro', 'evit'), [*zoo.MICRO, *METHODS]))
def test_graphs_have_no_trace_of_it(name):
    """As many nodes as without the recorder, also for who exports while he listens."""
    model = reduced(name) if name in METHODS else zoo.build(name)
    image = torch.randn(1, 3, 96, 128)

    def nodes():
        return [str(node.target) for node in export(model, (image,)).graph.nodes]
    plain = nodes()
    with listen() as records:
        assert nodes() == plain
    assert records == []
    assert name in METHODS or not any('one_hot' in target or 'argmax' in target for target in plain)


@pytest.mark.parametrize('name', ['svit_micro', 'evit'])
def test_compiled_whole(name):
    model = reduced(name) if name in METHODS else zoo.build(name)
    image = torch.randn(1, 3, 96, 128)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend='eager')
    with torch.no_grad():
        # attention may take another way, which rounds otherwise
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-5, atol=1e-5)
        with listen() as records:
            compiled(image)
    assert records == []
    assert [m.layer for m in vitzoo.token_map(compiled, image)] == [m.layer for m in vitzoo.token_map(model, image)]


def test_compiled_parts():
    model, image = zoo.build('svit_micro'), torch.randn(1, 3, 96, 128)
    expected = vitzoo.token_map(model, image)
    model.stages[0].blocks[0].compile(backend='eager')
    model.stages[1] = torch.compile(model.stages[1], backend='eager')
    with torch.no_grad():
        model(image)
    found = vitzoo.token_map(model, image)
    assert [m.layer for m in found] == [m.layer for m in expected]
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(found, expected, strict=True))


def test_threads_record_apart():
    """A thread that does not ask records nothing, and each that asks gets its own image's maps."""
    model, images = reduced('evit'), torch.randn(4, 3, 96, 128)
    expected = [vitzoo.token_map(model, image) for image in images]
    barrier = threading.Barrier(5)

    def ask(image):
        barrier.wait(60)
        return [vitzoo.token_map(model, image) for _ in range(3)]

    def run():
        barrier.wait(60)
        return [(recording(), model(images).sum()) for _ in range(3)]
    with ThreadPoolExecutor(5) as pool:
        quiet = pool.submit(run)
        found = [*pool.map(ask, images)]
        assert not any(asked for asked, _ in quiet.result())
    for maps, runs in zip(expected, found, strict=True):
        for again in runs:
            assert len(again) == len(maps) and all(torch.equal(a.labels, b.labels) for a, b in zip(again, maps, strict=True))


def test_mode_and_gradients_are_left_alone():
    model = timm.create_model('svit_micro', drop_path_rate=0.9)
    model.stages[1].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    image = torch.randn(3, 64, 64, requires_grad=True)
    first, second = (vitzoo.token_map(model, image)[-1].labels for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # no running statistics moved


@pytest.mark.parametrize('model, image, message', [
    (None, torch.randn(3, 64, 64), 'model=None: expected a torch.nn.Module'),
    ('svit_micro', torch.randn(2, 3, 64, 64), 'expected one image'),
    ('svit_micro', torch.randn(0, 3, 64, 64), 'expected one image'),
    ('svit_micro', torch.randn(1, 64, 64), 'Expected 3 channels'),
    ('svit_micro', torch.zeros(3, 64, 64, dtype=torch.uint8), 'floating-point'),
    ('svit_micro', torch.randn(64, 64), '2 dimensions'),
    ('svit_micro', 'x.png', 'a torch.Tensor'),
    ('resnet10t', torch.randn(3, 64, 64), 'resnet10t has no token maps'),
])
def test_bad_arguments(model, image, message):
    with pytest.raises(ValueError, match=message):
        vitzoo.token_map(model and timm.create_model(model), image)


# ---- what the maps are

def test_cells():
    assert cells(3, 5, 2, 2).tolist() == [[[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]]
    assert cells(3, 5, 2, 4, shift=1).tolist() == [[[0, 1, 1, 1, 1], [2, 3, 3, 3, 3], [2, 3, 3, 3, 3]]]


def test_super_tokens():
    """The association of the first block, once more and position by position."""
    model, image = zoo.build('svit_micro'), torch.randn(3, 96, 130)
    found = vitzoo.token_map(model, image)[0]
    seen = []
    attn = model.stages[0].blocks[0].attn
    hook = attn.register_forward_hook(lambda module, args, out: seen.append(args[0][0]))
    with torch.no_grad():
        model(image[None])
    hook.remove()
    x = seen[0]
    H, W, C = x.shape
    h, w = attn.stoken_size
    rows, cols = -(-H // h), -(-W // w)
    x = F.pad(x, (0, 0, 0, cols * w - W, 0, rows * h - H))
    means = x.unflatten(1, (cols, w)).unflatten(0, (rows, h)).mean((1, 3))
    assert found.what == 'super tokens' and found.total == rows * cols
    for i in range(0, H, 3):
        for j in range(0, W, 3):
            near = [(r, c) for r in range(i // h - 1, i // h + 2) for c in range(j // w - 1, j // w + 2)
                    if 0 <= r < rows and 0 <= c < cols]
            logits = torch.stack([means[r, c] @ x[i, j] for r, c in near])
            best = [r * cols + c for (r, c), logit in zip(near, logits, strict=True) if logit >= logits.max() - 1e-5]
            assert found.labels[i, j] in best


def test_routed_regions():
    model, image = zoo.build('biformer_micro'), torch.randn(3, 96, 130)
    maps = vitzoo.token_map(model, image)
    chosen = []
    hooks = [block.attn.router.register_forward_hook(lambda module, args, out: chosen.append(out[0]))
             for stage in model.stages[:-1] for block in stage.blocks]
    with torch.no_grad():
        model(image[None])
    assert len(hooks) == len(maps) and isinstance(model, BiFormer)
    for m, picks in zip(maps, chosen, strict=True):
        H, W = m.labels.shape
        h, w = -(-H // 7), -(-W // 7)
        for i in range(H):
            for j in range(W):
                assert m.labels[i, j] == (picks == i // h * 7 + j // w).sum()
        assert m.kind == 'counts' and m.total == 49


@pytest.mark.parametrize('size', [(224, 224), (192, 160), (224, 448), (48, 48)])  # the last has as many semantic tokens as positions
def test_semantic_tokens_of_stvit(size):
    """By the attention maps that the forward itself makes where attention is spelled out."""
    set_fused_attn(False)
    try:
        model = zoo.build('stvit_micro')
    finally:
        set_fused_attn(True)
    image, stage = torch.randn(3, *size), model.stages[2]
    maps = {m.layer: m.labels for m in vitzoo.token_map(model, image)}
    seen = {}
    for i in (1, 2, 5):
        stage.blocks[i].attn.sdp_attn.attn_drop.register_forward_hook(lambda module, args, out, i=i: seen.update({i: out.mean(1)}))
    with torch.no_grad():
        model(image[None])
    H, W = (n // 16 for n in size)
    num_semantic = -(-H // 7) * -(-W // 7) * 9
    window = cells(H, W, 7, 7)[0]
    inside = torch.arange(H)[:, None] % 7 * 7 + torch.arange(W) % 7
    whole = H % 7 == W % 7 == 0
    place = window * 49 + inside if whole else torch.arange(H * W).view(H, W)  # of each position among the image tokens
    for i, weights in seen.items():
        if len(weights) > 1:  # gathered keys, window by window: the other form of the same
            continue
        weights = weights[0]
        if i == 5:
            expected = weights[:, :num_semantic].argmax(1)[place]
        else:
            first = weights.shape[1] - H * W if size == (224, 224) else 0
            expected = weights[:, first:first + H * W].argmax(0)[place]
        assert torch.equal(maps[f'stages.2.blocks.{i}'], expected), i


def test_tokens_that_look_at_a_position_most():
    set_fused_attn(False)
    try:
        model = zoo.build('stvit_deit_micro')
    finally:
        set_fused_attn(True)
    lookup = zoo.build('lookupvit_micro')
    seen = {}
    model.blocks[3].attn.attn_drop.register_forward_hook(lambda module, args, out: seen.update(deit=out[0].mean(0)))
    lookup.blocks[1].gather.register_forward_hook(lambda module, args, out: seen.update(lookup=out[1][0].mean(0)))
    image = torch.randn(3, 96, 130)
    found = {m.layer: m for m in vitzoo.token_map(model, image) if m.what == 'semantic tokens'}['blocks.3']
    assert torch.equal(found.labels.flatten(), seen['deit'][:, -6 * 9:].argmax(0)) and found.total == 16
    found = {m.layer: m for m in vitzoo.token_map(lookup, image)}['blocks.1']
    assert torch.equal(found.labels.flatten(), seen['lookup'].argmax(0)) and found.labels.shape == (12, 17)


@pytest.mark.parametrize('name, block', [('vz_davit_micro', 'stages.0.blocks.0.0'), ('stvit_micro', 'stages.1.blocks.1')])
def test_nothing_passes_between_windows(name, block):
    """A change at one position moves the attention of its window alone."""
    model = zoo.build(name)
    image = torch.randn(1, 3, 192, 160)
    labels = {m.layer: m.labels for m in vitzoo.token_map(model, image)}[block]
    block = model.get_submodule(block)
    inputs = []
    if name == 'stvit_micro':
        block.register_forward_pre_hook(lambda module, args: inputs.append(args))
        with torch.no_grad():
            model(image)
            x, H, W, shift = inputs[0]
            change = torch.zeros_like(x).view(H, W, -1)
            change[3, 5] = 1
            moved = block.attn(x + change.view(x.shape), H, W, shift) - block.attn(x, H, W, shift)
    else:
        block.norm1.register_forward_hook(lambda module, args, out: inputs.append(out))
        with torch.no_grad():
            model(image)
            x = inputs[0]
            H, W = x.shape[1:3]
            norm, block.norm1 = block.norm1, torch.nn.Identity()
            change = torch.zeros_like(x)
            change[0, 3, 5] = 1
            moved = block.add_attention(x + change) - change - block.add_attention(x)
            block.norm1 = norm
    moved = moved.view(H, W, -1).abs().amax(-1) > 1e-6
    assert torch.equal(moved, labels == labels[3, 5])


def test_merged_tokens_partition_the_patches():
    model, image = reduced('tome'), torch.randn(1, 3, 96, 128)
    last = []
    kind = type(model.reduction)
    tokens = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        restore = kind.labels
        patch.setattr(kind, 'labels', lambda self, t: tokens.append(t) or restore(self, t))
        last = vitzoo.token_map(model, image)
    for m, t in zip(last, tokens, strict=True):
        counts = torch.bincount(m.labels.flatten(), minlength=m.total)
        assert torch.equal(counts, t.size[0, 1:].round().long()) and counts.min() == 1 and counts.sum() == 48


def test_kept_tokens_are_where_they_were():
    """Positions of survivors, by the patch embedding that went with them through steps that keep and append."""
    x = torch.arange(12.).view(1, 12, 1).repeat(2, 1, 1)
    tokens = Tokens(x, 0, (3, 4))
    for num_kept, num_new in ((9, 1), (7, 0), (4, 2), (5, 0)):
        order = torch.stack([torch.randperm(tokens.num_patches) for _ in range(2)])
        drop = Drop(tokens.patches, order, num_kept, num_new)
        kept = tokens.take(order[:, :num_kept])
        tokens = kept._replace(x=F.pad(kept.x, (0, 0, 0, num_new), value=-1), history=(*tokens.history, drop))
        labels = left_by(tokens)
        for b in range(2):
            expected = [next((i for i, value in enumerate(tokens.x[b, :, 0].tolist()) if value == place), -1) for place in range(12)]
            assert labels[b].tolist() == expected
    assert left_by(Tokens(x[:0], 0, (3, 4))).shape == (0, 12)
    assert left_by(Tokens(x, 0, (3, 4))).tolist() == [list(range(12))] * 2


def test_what_is_merged_into_contextual_tokens_belongs_to_them():
    model = timm.create_model('deit_tiny_patch16_224', img_size=(96, 128), depth=3).eval()
    vitzoo.reduce_tokens(model, 'select', location=1, keep=20, merge_rest=True, num_context=4)
    image = torch.randn(1, 3, 96, 128)
    labels = vitzoo.token_map(model, image)[-1].labels.flatten()
    counts = torch.bincount(labels, minlength=24)
    assert (counts[:20] == 1).all() and (counts[20:] >= 1).all() and counts.sum() == 48
    rest = (labels >= 20).nonzero().flatten()
    assert labels[rest[::7]].tolist() == [20, 21, 22, 23]  # every seventh of 28 is the target of its token


def test_keys_that_are_seen():
    """Sparsifiner: each patch sees a quarter of 49 keys in each head, and none that was given up."""
    model = reduced('sparsifiner')
    maps = vitzoo.token_map(model, torch.randn(3, 96, 128))
    seen, tokens = ([m for m in maps if m.kind == kind] for kind in ('counts', 'tokens'))
    assert [m.layer for m in seen] == [f'blocks.{i}.attn' for i in range(3)] and seen[0].total == 3 * 48
    for m in seen:
        assert m.labels.sum() <= 3 * 48 * 13 and m.labels.sum() > 0
    dropped = tokens[1].labels < 0
    assert dropped.sum() == 48 - math.ceil(0.8 * 48) and (seen[2].labels[dropped] == 0).all()


def test_a_method_of_ones_own_has_maps():
    class Every(Method):
        """Every second patch goes in front of block 1."""
        def schedule(self, num_patches, depth, num_prefix=1):
            return (num_patches, *[math.ceil(num_patches / 2)] * (depth - 1))

        def pre(self, model, i, tokens):
            if i != 1:
                return tokens
            order = torch.arange(tokens.num_patches).view(-1, 2).t().reshape(1, -1).expand(len(tokens.x), -1)
            kept = tokens.num_patches // 2
            return tokens.take(order[:, :kept])._replace(history=(Drop(tokens.patches, order, kept),))
    model = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2)
    first, last = vitzoo.token_map(vitzoo.reduce_tokens(model, Every()), torch.randn(3, 64, 64))
    assert first.labels.flatten().tolist() == list(range(16))
    assert last.labels.tolist() == [[0, -1, 1, -1], [2, -1, 3, -1], [4, -1, 5, -1], [6, -1, 7, -1]] and last.total == 8
