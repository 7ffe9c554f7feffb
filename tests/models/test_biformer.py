"""What is special about BiFormer: routing attention against plain loops, its two generations and their files, the published numbers."""
import math

import golden
import pytest
import timm
import torch
from torch import nn

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.export import deploy_form
from vitzoo.models.biformer import (
    NOT_CHOSEN,
    Attention,
    Block,
    NchwRoutingAttention,
    Router,
    RoutingAttention,
    masking_pays,
    region_of_pixel,
)

CASES = {'tiny': 'biformer_tiny.npz', 'stl': 'biformer_stl.npz', 'stl_nchw': 'biformer_stl_nchw.npz', 'dense': 'biformer_tiny-dense.npz'}
GATHER, MASK = 0, 10 ** 9  # max_masked


def published(case):
    facts, _ = golden.load_case(f'biformer/{CASES[case]}')
    return golden.make_state_dict(facts['entries'], facts['rescale'])


# ---- plain loops

def plain_linear(linear, x):
    return x @ linear.weight.T + (0 if linear.bias is None else linear.bias)


def plain_depthwise(conv, x):
    """5x5 on a (B, H, W, C) map, offset by offset."""
    _, H, W, _ = x.shape
    around = torch.nn.functional.pad(x, (0, 0, 2, 2, 2, 2))
    return sum(around[:, i:i + H, j:j + W] * conv.weight[:, 0, i, j] for i in range(5) for j in range(5)) + conv.bias


def plain_attend(q, k, v, num_heads, scale):
    """(queries, C), (keys, C), (keys, C), head by head."""
    heads = [slice(i, i + q.shape[1] // num_heads) for i in range(0, q.shape[1], q.shape[1] // num_heads)]
    return torch.cat([(q[:, head] @ k[:, head].T * scale).softmax(1) @ v[:, head] for head in heads], 1)


def plain_routing(q, k, v, real, h, w, topk, num_heads):
    """Region by region on padded maps (H, W, C) of one image; means are those of real pixels (H, W). Returns map, choices."""
    H, W, C = q.shape
    cells = [(slice(i, i + h), slice(j, j + w)) for i in range(0, H, h) for j in range(0, W, w)]
    q_means, k_means = ([m[cell][real[cell]].mean(0) for cell in cells] for m in (q, k))
    out, choices = torch.zeros_like(q), []
    for cell, q_mean in zip(cells, q_means, strict=True):
        affinity = [float((q_mean @ k_mean).detach()) for k_mean in k_means]
        chosen = sorted(range(len(cells)), key=lambda m: -affinity[m])[:topk]
        keys, values = (torch.cat([m[cells[n]].reshape(-1, C) for n in chosen]) for m in (k, v))
        out[cell] = plain_attend(q[cell].reshape(-1, C), keys, values, num_heads, 1 / math.sqrt(C)).reshape(h, w, C)
        choices.append(set(chosen))
    return out, choices


def plain_legacy(module, x):
    """Zeros complete the map before the projection, and are pixels like others."""
    n, (B, H, W, C) = module.n_win, x.shape
    h, w = math.ceil(H / n), math.ceil(W / n)
    padded = x.new_zeros(B, n * h, n * w, C)
    padded[:, :H, :W] = x
    q, k, v = plain_linear(module.qkv, padded).split(C, -1)
    real = torch.ones(n * h, n * w, dtype=torch.bool)
    out, choices = zip(*(plain_routing(*maps, real, h, w, module.router.topk, module.num_heads) for maps in zip(q, k, v, strict=True)),
                       strict=True)
    return plain_linear(module.wo, (torch.stack(out) + plain_depthwise(module.lepe, v))[:, :H, :W]), choices


def plain_nchw(module, x):
    """Zeros complete queries, keys and values, and count in no mean."""
    n, (B, H, W, C) = module.n_win, x.shape
    h, w = H // n, W // n
    rows, cols = math.ceil(H / h), math.ceil(W / w)
    qkv = x.new_zeros(B, rows * h, cols * w, 3 * C)
    qkv[:, :H, :W] = plain_linear(module.qkv_linear, x)
    q, k, v = qkv.split(C, -1)
    real = torch.zeros(rows * h, cols * w, dtype=torch.bool)
    real[:H, :W] = True
    out, choices = zip(*(plain_routing(*maps, real, h, w, module.router.topk, module.num_heads) for maps in zip(q, k, v, strict=True)),
                       strict=True)
    return plain_linear(module.output_linear, torch.stack(out)[:, :H, :W] + plain_depthwise(module.lepe, v[:, :H, :W])), choices


PLAIN = {RoutingAttention: plain_legacy, NchwRoutingAttention: plain_nchw}


def routing(cls, n_win=3, topk=2, max_masked=GATHER):
    module = cls(8, 2, n_win, topk, dtype=torch.float64)
    module.max_masked = max_masked
    nn.init.normal_(module.lepe.weight)
    return module


def same_with_gradients(module, plain, x):
    """Equal values and gradients. `plain` treats the choice as constant, since it makes it from Python numbers."""
    y, expected = module(x), plain(module, x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    inputs, direction = [x, *module.parameters()], torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction),
                               rtol=1e-9, atol=1e-11)


ROUTINGS = [
    (RoutingAttention, (6, 9), 3, 2),  # divides
    (RoutingAttention, (7, 10), 3, 4),  # padded on both sides
    (RoutingAttention, (9, 5), 4, 3),  # a row of regions that is all padding
    (RoutingAttention, (9, 5), 4, 15),  # some of it must be chosen
    (RoutingAttention, (1, 1), 3, 5),
    (RoutingAttention, (2, 7), 4, 16),  # all regions
    (RoutingAttention, (5, 4), 1, 1),
    (NchwRoutingAttention, (6, 9), 3, 2),
    (NchwRoutingAttention, (7, 9), 3, 4),  # 4 x 3 regions of 2 x 3, the last ones half real
    (NchwRoutingAttention, (11, 13), 4, 7),  # 6 x 5 regions
    (NchwRoutingAttention, (5, 5), 3, 9),  # 5 x 5 regions of a pixel
    (NchwRoutingAttention, (4, 6), 2, 4),  # all regions
]


@pytest.mark.parametrize('max_masked', [GATHER, MASK], ids=['gathered', 'masked'])
@pytest.mark.parametrize('cls, size, n_win, topk', ROUTINGS, ids=str)
def test_routing_attention_against_plain_loops(cls, size, n_win, topk, max_masked):
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    same_with_gradients(routing(cls, n_win, topk, max_masked), PLAIN[cls], x)


@pytest.mark.parametrize('lepe_of_values', [False, True])
def test_attention_of_all_positions_against_plain_loops(lepe_of_values):
    def plain(module, x):
        B, H, W, C = x.shape
        q, k, v = (m.reshape(B, H * W, C) for m in plain_linear(module.qkv, x).split(C, -1))
        y = torch.stack([plain_attend(*maps, 8, 1 / math.sqrt(C // 8)) for maps in zip(q, k, v, strict=True)]).reshape(x.shape)
        return plain_linear(module.proj, y + plain_depthwise(module.lepe, v.reshape(x.shape) if lepe_of_values else x))

    x = torch.randn(2, 3, 5, 32, dtype=torch.float64, requires_grad=True)
    same_with_gradients(Attention(32, lepe_of_values, dtype=torch.float64), plain, x)


def test_the_two_generations_agree_where_sizes_divide_and_only_there():
    legacy, nchw = routing(RoutingAttention), routing(NchwRoutingAttention)
    nchw.load_state_dict({key.replace('qkv.', 'qkv_linear.').replace('wo.', 'output_linear.'): value
                          for key, value in legacy.state_dict().items()})
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(legacy(x), nchw(x), rtol=1e-10, atol=1e-12)
    x = torch.randn(2, 7, 9, 8, dtype=torch.float64)
    assert not torch.allclose(legacy(x), nchw(x))


def test_ties_between_regions_of_padding_do_not_matter():
    """A 5x5 map in 4x4 regions of 2x2: the last row and column are padding alone, and rank first or last, but as one."""
    module = routing(RoutingAttention, n_win=4, topk=6)
    padding = {m for m in range(16) if m // 4 == 3 or m % 4 == 3}
    x = torch.randn(1, 5, 5, 8, dtype=torch.float64)
    seen = []
    module.router.register_forward_hook(lambda router, args, chosen: seen.append(chosen))
    y = module(x)
    assert any(0 < len(padding & set(row)) < len(padding) for row in seen[0][0].tolist()), 'no tie at the edge of the choice'

    def other_ties(router, args, chosen):
        rows = [set(row) for row in chosen[0].tolist()]
        rows = [sorted(row - padding) + sorted(padding)[-len(row & padding):] if row & padding else sorted(row) for row in rows]
        return torch.tensor([rows])

    module.router.register_forward_hook(other_ties)
    for module.max_masked in (GATHER, MASK):
        torch.testing.assert_close(module(x), y, rtol=1e-12, atol=1e-12)


# ---- which regions, and how

@pytest.mark.parametrize('case', ['tiny', 'stl_nchw'])
def test_routing_decisions_are_the_published_ones(case):
    """The golden cases' routing has margins that float32 keeps, and is recomputed here in float64 from what each attention was given."""
    facts, _ = golden.load_case(f'biformer/{CASES[case]}')
    model = timm.create_model(facts['model']).eval()
    vitzoo.load_checkpoint(model, published(case))
    attentions = [m for m in model.modules() if isinstance(m, (RoutingAttention, NchwRoutingAttention))]
    chosen, given = {}, {}
    for m in attentions:
        m.register_forward_pre_hook(lambda module, args: given.update({module: args[0]}))
        m.router.register_forward_hook(lambda router, args, out: chosen.update({router: out}))
    with torch.inference_mode():
        model(golden.make_input(facts['seed'], facts['shape']))
        for m in attentions:
            x, k = given[m].double(), m.router.topk
            C = x.shape[3]
            qkv = nn.functional.linear(x, *(p.double() for p in (m.qkv_linear if case == 'stl_nchw' else m.qkv).parameters()))
            h, w = x.shape[1] // 7, x.shape[2] // 7
            means = qkv.reshape(-1, 7, h, 7, w, 3 * C).mean((2, 4)).flatten(1, 2)
            affinity = means[..., :C] @ means[..., C:2 * C].transpose(1, 2)
            wanted = affinity.argsort(dim=2, descending=True)[..., :k]
            assert torch.equal(chosen[m.router].sort(2).values, wanted.sort(2).values)
    assert len(attentions) == sum(facts['kwargs']['depth'][:3])


def test_routing_takes_no_gradient():
    router = Router(2)
    q, k = (torch.randn(1, 4, 8, requires_grad=True) for _ in range(2))
    assert not router(q, k).requires_grad


@pytest.mark.parametrize('M, P, topk, masked', [
    (49, 64, 1, False), (49, 16, 4, False), (49, 4, 16, True),  # the stages at 224x224
    (49, 16, 16, False), (64, 4, 16, True), (64, 16, 16, False), (256, 1, 16, True), (256, 4, 16, False), (49, 1, 1, False),
    (49, 400, 49, True), (256, 16, 255, False),
])
def test_form_of_attention(M, P, topk, masked):
    assert masking_pays(M, P, topk, RoutingAttention.max_masked) == masked


def test_stages_at_224(monkeypatch):
    from vitzoo.models import biformer
    used = []

    def spy(form):
        real = getattr(biformer, form)
        monkeypatch.setattr(biformer, form, lambda *args: (used.append(form), real(*args))[1])

    spy('attend_gathered')
    spy('attend_masked')
    with torch.no_grad():
        timm.create_model('biformer_micro').eval()(torch.randn(1, 3, 224, 224))
    assert used == ['attend_gathered'] * 2 + ['attend_masked'] * 2


@pytest.mark.parametrize('name', ['biformer_micro', 'biformer_nchw_micro'])
@pytest.mark.parametrize('size', [(224, 224), (150, 201)])
def test_both_forms_give_the_same_model(name, size):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, *size)
    outputs = []
    with torch.no_grad():
        for limit in (GATHER, MASK, RoutingAttention.max_masked):
            for m in model.modules():
                if hasattr(m, 'max_masked'):
                    m.max_masked = limit
            outputs.append(model(x))
    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], rtol=0, atol=2e-6 * y.abs().max().item())


@pytest.mark.parametrize('rows, cols, h, w', [(1, 1, 2, 3), (2, 3, 1, 1), (3, 2, 2, 4)])
def test_region_of_pixel(rows, cols, h, w):
    table = region_of_pixel(rows, cols, h, w)
    assert table.dtype == torch.int64
    assert table.tolist() == [i // h * cols + j // w for i in range(rows * h) for j in range(cols * w)]


# ---- options

@pytest.mark.parametrize('n_win, topks', [(8, (1, 4, 16, -2)), (16, (1, 4, 16, -2)), (2, (1, 3, 4, -2)), (7, (49, 49, 49, 49)),
                                          (3, (-2, 2, -2, 5))])
def test_other_regions_with_the_same_weights(n_win, topks):
    embed_dims = (32, 64, 96, 192)
    model = timm.create_model('biformer_micro', n_win=n_win, topks=topks, num_classes=4, embed_dims=embed_dims).train()
    for size in [(64, 96), (33, 130), (1, 1)]:
        model.zero_grad()
        y = model(torch.randn(2, 3, *size))
        assert y.shape == (2, 4)
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if topks == (1, 4, 16, -2):
        model.load_state_dict(timm.create_model('biformer_micro', num_classes=4).state_dict())


def test_regions_matter():
    x = torch.randn(1, 3, 96, 96)
    outputs = []
    for kwargs in [{}, dict(n_win=8), dict(topks=(2, 4, 16, -2)), dict(topks=(1, 4, 15, -2))]:
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(timm.create_model('biformer_micro', **kwargs).eval()(x))
    for i in range(1, len(outputs)):
        assert not torch.allclose(outputs[0], outputs[i])


@pytest.mark.parametrize('kwargs, message', [
    (dict(n_win=0), r'n_win=0: expected 1 to 256'),
    (dict(n_win=(7, 7, 7, 7)), r'n_win=\(7, 7, 7, 7\): expected an integer'),
    (dict(topks=(1, 4, 16)), r'topks=\(1, 4, 16\): expected one value per stage'),
    (dict(topks=(1, 4, 50, -2)), r'topks=\(1, 4, 50, -2\): expected 1 to n_win \*\* 2 = 49 regions, or -2'),
    (dict(topks=(1, 4, 16, -1)), r'topks=.*or -2'),
    (dict(topks=(1, 4, 16, -2), nchw=True), r'topks=.*or -1'),
    (dict(topks=(0, 4, 16, -2)), r'topks=\(0'),
    (dict(depths=(1, 1, 0, 1)), r'depths=\(1, 1, 0, 1\)'),
    (dict(mlp_ratio=-1.), r'mlp_ratio=-1.0'),
    (dict(head_dim=0), r'head_dim=0'),
    (dict(embed_dims=(48, 64, 96, 192)), r'48 channels do not divide into heads of head_dim=32'),
    (dict(embed_dims=(32, 64, 96, 100)), r'100 channels do not divide into 8 heads'),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('biformer_micro', **kwargs)


def test_published_classifiers_without_padding():
    """Without auto_pad: what does not divide is refused, and the Swin layout cuts the rest of a patch."""
    model = timm.create_model('biformer_micro', auto_pad=False).eval()
    padding = timm.create_model('biformer_micro').eval()
    padding.load_state_dict(model.state_dict())
    with torch.no_grad():
        for size in [(112, 224), (109, 112)]:  # of the second, 3x3 convolutions make the same map sizes
            x = torch.randn(1, 3, *size)
            assert torch.equal(model(x), padding(x))
        for forward in (model, model.forward_intermediates):
            with pytest.raises(ValueError, match=r'96x112: its map of 24x28 at stride 4 does not divide into 7x7 .* Multiples of 112'):
                forward(torch.randn(1, 3, 96, 112))
        swin = timm.create_model('biformer_micro', auto_pad=False, swin_layout=True).eval()
        maps = swin.forward_intermediates(torch.randn(1, 3, 112, 115), intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [(28, 28), (14, 14), (7, 7), (3, 3)]
        later = timm.create_model('biformer_nchw_micro', auto_pad=False).eval()
        maps = later.forward_intermediates(torch.randn(1, 3, 70, 113), intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [(17, 28), (8, 14), (4, 7), (2, 3)]
    for kwargs in (dict(), dict(topks=(-2,) * 4)):
        with pytest.raises(ValueError, match='31x112.*(too small|does not divide)'):
            timm.create_model('biformer_micro', auto_pad=False, swin_layout=True, **kwargs)(torch.randn(1, 3, 31, 112))


@pytest.mark.parametrize('n_win, smallest', [(4, 64), (7, 112), (8, 128)])
def test_the_later_generation_has_a_minimum(n_win, smallest):
    model = timm.create_model('biformer_nchw_micro', n_win=n_win).eval()
    assert model.min_input_size == (smallest, smallest)
    with torch.no_grad():
        model(torch.randn(1, 3, smallest, smallest))
        with pytest.raises(ValueError, match=f'minimum is {smallest}x{smallest}'):
            model(torch.randn(1, 3, smallest - 1, smallest))
    cfg = timm.get_pretrained_cfg('biformer_stl_nchw')
    assert cfg.min_input_size == (3, 112, 112) == (3, *timm.create_model('biformer_stl_nchw', device='meta').min_input_size)


# ---- files

@pytest.mark.parametrize('file, owner, right', [
    ('tiny', 'biformer_tiny', 'use biformer_tiny, biformer_small or biformer_base'),
    ('dense', 'biformer_tiny', 'use biformer_tiny, biformer_small or biformer_base'),
    ('stl', 'biformer_stl', r'use biformer_stl\.'),
    ('stl_nchw', 'biformer_stl_nchw', r'use biformer_stl_nchw\.'),
])
def test_published_files_are_told_apart(file, owner, right):
    state = published(file)
    for name in {'biformer_tiny', 'biformer_stl', 'biformer_stl_nchw', 'svit_micro'} - {owner}:
        with pytest.raises(ValueError, match=right):
            vitzoo.load_checkpoint(timm.create_model(name), state)


@pytest.mark.parametrize('name', ['biformer_micro', 'biformer_nchw_micro'])
def test_own_files_do_not_load_into_the_other_generation(name):
    kwargs = dict(swin_layout=True, depths=(1, 1, 2, 1), num_classes=7)
    legacy, later = timm.create_model('biformer_micro', **kwargs), timm.create_model('biformer_nchw_micro', **kwargs)
    models = {'biformer_micro': legacy, 'biformer_nchw_micro': later}
    state = models.pop(name).state_dict()
    other, = models.values()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    right = 'use biformer_stl_nchw' if name == 'biformer_nchw_micro' else r'use biformer_stl\.'
    with pytest.raises(ValueError, match=right):
        vitzoo.load_checkpoint(other, state)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    again = timm.create_model(name, **kwargs)
    report = vitzoo.load_checkpoint(again, state)
    assert not (report.renamed or report.dropped or report.new)


def test_published_layouts_of_the_same_generation_do_not_mix_in_our_names():
    plain, swin = timm.create_model('biformer_micro'), timm.create_model('biformer_micro', swin_layout=True)
    for model, other in [(plain, swin), (swin, plain)]:
        with pytest.raises(ValueError, match='does not fit'):
            vitzoo.load_checkpoint(model, other.state_dict())


def test_classifier_and_dense_files_fit_each_other():
    classifier, dense = published('tiny'), published('dense')
    backbone = DenseBackbone('biformer_tiny', n_win=8)
    report = vitzoo.load_checkpoint(backbone, {'model': classifier})
    assert set(report.new) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    assert {name.split('.')[0] for name in report.dropped} == {'norm', 'head'}
    report = vitzoo.load_checkpoint(backbone, {'state_dict': {f'backbone.{name}': value for name, value in dense.items()}})
    assert not report.new and not report.dropped
    assert torch.equal(backbone.norm2.weight, dense['extra_norms.2.weight'])
    assert backbone.norm2.eps == 1e-6
    assert sum(p.numel() for p in backbone.parameters()) == 12_630_656
    model = timm.create_model('biformer_tiny', num_classes=5)
    report = vitzoo.load_checkpoint(model, dense, reset_head=True, strict=False)
    assert {name.split('.')[0] for name in report.dropped} == {'extra_norms'}
    assert {name.split('.')[0] for name in report.new} == {'norm', 'head'}


# ---- published numbers

def test_initial_weights():
    """Linear layers normal with deviation 0.02 and no bias; in the later generation, which had convolutions for them, torch's default."""
    torch.manual_seed(0)
    for name, module in timm.create_model('biformer_micro').named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any()
    for name, module in timm.create_model('biformer_nchw_micro').named_modules():
        if isinstance(module, nn.Linear):
            deviation = 0.02 if name == 'head.fc' else (3 * module.in_features) ** -0.5
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05), name
            assert module.bias is None or module.bias.any() == (name != 'head.fc')


def test_needed_products_are_counted():
    """Projections, routing, attention to k regions, position encoding: nothing that is only masked."""
    H = W = 14
    N, M, C, k = H * W, 49, 256, 16
    module = RoutingAttention(C, 8, 7, k)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = module

        def forward(self, x):
            return self.attn(x.permute(0, 2, 3, 1))

    macs = vitzoo.profile(Alone(), (C, H, W)).macs
    assert macs == N * C * 4 * C + M * M * C + 2 * N * k * N // M * C + N * C * 25
    assert module.max_masked == RoutingAttention.max_masked


@pytest.mark.parametrize('max_masked', [GATHER, MASK], ids=['gathered', 'masked'])
@pytest.mark.parametrize('cls, size, n_win, topk', ROUTINGS, ids=str)
def test_deployed_block_computes_the_same(cls, size, n_win, topk, max_masked):
    block = Block(8, routing(cls, n_win, topk, max_masked), mlp_ratio=3., pos_embed=True, drop_path=0., dtype=torch.float64)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    block.requires_grad_(False)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    expected = block(x)
    block.attn = block.attn.deploy('onnx')
    torch.testing.assert_close(block.deploy('onnx')(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_pairs_not_chosen_weigh_nothing_in_normal_numbers():
    """Next to chosen pairs with logits 20 lower or higher."""
    most = 1024  # keys that are ever masked
    assert most * math.exp(NOT_CHOSEN + 20) < torch.finfo(torch.float32).eps
    assert math.exp(NOT_CHOSEN - 20) > torch.finfo(torch.float32).tiny


def test_deployed_graph_splits_nothing():
    """ONNX Runtime copies where PyTorch views: queries, keys and values come from products of their own, and transposes are of low rank."""
    model = deploy_form(timm.create_model('biformer_micro'))
    nodes = [node for node in torch.export.export(model, (torch.randn(1, 3, 224, 224),)).graph.nodes if node.op == 'call_function']
    assert not any('chunk' in node.name or 'split' in node.name for node in nodes)
    assert max(node.meta['val'].ndim for node in nodes if 'permute' in node.name or 'transpose' in node.name) <= 6
