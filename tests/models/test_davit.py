"""What is special about DaViT: both attentions against plain loops, timm's davit_* on the same weights, published numbers and layouts."""
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.layers import split_heads
from vitzoo.models import davit
from vitzoo.models.davit import (
    ChannelAttention,
    ConvPosEnc,
    DaViT,
    Downsample,
    SpatialBlock,
    WindowAttention,
    add_windows,
    to_windows,
)

OURS = [name for name in timm.list_models('vz_davit_*')]
SAME_AS_TIMM = {'vz_davit_tiny': 'davit_tiny', 'vz_davit_small': 'davit_small', 'vz_davit_base': 'davit_base',
                'vz_davit_large': 'davit_large', 'vz_davit_base_fl': 'davit_base_fl', 'vz_davit_huge_fl': 'davit_huge_fl'}


def error(x, y):
    """Largest difference, as a share of the largest value."""
    assert x.shape == y.shape
    return ((x - y).abs().max() / y.abs().max()).item()


def randomize(model):
    """Norms, biases and kernels as far from their initial values as trained ones are."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=math.prod(p.shape[1:]) ** -0.5) if p.ndim > 1 else p.add_(0.1 * torch.randn_like(p))
    return model.eval()


# ---- the attentions

def plain_window_attention(attn, x, window):
    """Window by window, head by head, query by query; padded positions are zeros before qkv, and hence its bias after it."""
    (h, w), (B, H, W, C) = window, x.shape
    d = C // attn.num_heads
    rows, cols = math.ceil(H / h), math.ceil(W / w)
    padded = x.new_zeros(B, rows * h, cols * w, C)
    padded[:, :H, :W] = x
    out = torch.zeros_like(padded)
    for top in range(0, rows * h, h):
        for left in range(0, cols * w, w):
            cell = slice(None), slice(top, top + h), slice(left, left + w)
            q, k, v = (padded[cell].reshape(B, h * w, C) @ attn.qkv.weight.T + attn.qkv.bias).split(C, dim=-1)
            y = torch.zeros_like(q)
            for head in range(attn.num_heads):
                part = slice(head * d, (head + 1) * d)
                for n in range(h * w):
                    weights = ((q[:, n:n + 1, part] * k[..., part]).sum(-1) / math.sqrt(d)).softmax(-1)
                    y[:, n, part] = (weights[..., None] * v[..., part]).sum(1)
            out[cell] = (y @ attn.proj.weight.T + attn.proj.bias).reshape(B, h, w, C)
    return out[:, :H, :W]


def plain_channel_attention(attn, x):
    """Group by group, channel by channel."""
    B, H, W, C = x.shape
    d = C // attn.num_heads
    q, k, v = (x.reshape(B, H * W, C) @ attn.qkv.weight.T + attn.qkv.bias).split(C, dim=-1)
    row, column, value, scale = (q, k, v, (H * W) ** -0.5) if attn.v2 else (k, v, q, d ** -0.5)
    out = torch.zeros_like(q)
    for group in range(attn.num_heads):
        part = range(group * d, (group + 1) * d)
        for i in part:
            weights = torch.stack([scale * (row[..., i] * column[..., j]).sum(1) for j in part], -1).softmax(-1)
            out[..., i] = sum(weights[:, None, n] * value[..., j] for n, j in enumerate(part))
    return (out @ attn.proj.weight.T + attn.proj.bias).reshape(B, H, W, C)


def assert_same_with_gradients(forward, reference, x, module):
    y, expected = forward(x), reference(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    inputs, direction = [x, *module.parameters()], torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction),
                               rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('size, window', [
    ((6, 8), (3, 4)),  # nothing to pad
    ((7, 9), (3, 4)),  # padding on both sides
    ((6, 3), (3, 5)),  # on one
    ((4, 5), (4, 5)),  # a single window
    ((2, 3), (7, 7)),  # smaller than one
    ((1, 1), (2, 2)),
])
def test_window_attention_against_plain_loops(size, window):
    attn = randomize(WindowAttention(8, num_heads=2, dtype=torch.float64))
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    shortcut = torch.randn(2, *size, 8, dtype=torch.float64)
    assert_same_with_gradients(
        lambda x: add_windows(shortcut, attn(to_windows(x, window)), window),
        lambda x: shortcut + plain_window_attention(attn, x, window), x, attn)


@pytest.mark.parametrize('min_saved_macs', [0, 1 << 60], ids=['values merged', 'map merged'])
@pytest.mark.parametrize('v2', [False, True], ids=['v1', 'v2'])
@pytest.mark.parametrize('size', [(5, 7), (4, 3), (3, 4), (1, 12), (2, 2), (1, 1)])
def test_channel_attention_against_plain_loops(size, v2, min_saved_macs, monkeypatch):
    """With more positions than channels, as many, and fewer."""
    monkeypatch.setattr(davit, 'MIN_SAVED_MACS', min_saved_macs)
    attn = randomize(ChannelAttention(12, num_heads=3, v2=v2, dtype=torch.float64))
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    assert_same_with_gradients(attn, lambda x: plain_channel_attention(attn, x), x, attn)


def test_wide_channel_attention_against_plain_loops():
    """Where the form for large maps is taken by itself."""
    attn = randomize(ChannelAttention(128, num_heads=4, dtype=torch.float64))
    x = torch.randn(1, 66, 66, 128, dtype=torch.float64)
    assert (66 ** 2 - 128) * 128 ** 2 > davit.MIN_SAVED_MACS
    with torch.no_grad():
        torch.testing.assert_close(attn(x), plain_channel_attention(attn, x), rtol=1e-8, atol=1e-9)


def test_large_logits_survive_half_precision():
    """Sums over all positions overflow float16 before the scale, not after it."""
    attn = randomize(ChannelAttention(32, num_heads=1))
    x = 6 * torch.randn(1, 56, 56, 32)
    k, v = (x.flatten(1, 2) @ attn.qkv.weight.T + attn.qkv.bias).split(32, dim=-1)[1:]
    logits = (k.transpose(1, 2) @ v).abs().max()
    assert logits > 65504 > logits * 32 ** -0.5
    with torch.no_grad():
        assert error(attn.half()(x.half()).float(), attn.float()(x)) < 0.02


def test_layers_that_are_more_than_their_weight_are_called():
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    attn = randomize(ChannelAttention(8, num_heads=2))
    x = torch.randn(1, 5, 6, 8)
    adapted = Adapted(8, 8)
    adapted.load_state_dict(attn.proj.state_dict())
    with torch.no_grad():
        y = attn(x)
        attn.proj = adapted
        torch.testing.assert_close(attn(x), y + 1)


@pytest.mark.parametrize('size, window', [((6, 8), (3, 4)), ((7, 7), (7, 7)), ((5, 9), (3, 4)), ((2, 1), (7, 3))])
def test_windows_are_rows_of_the_map(size, window):
    H, W = size
    h, w = window
    x = torch.arange(1., 1 + H * W * 2).reshape(1, H, W, 2)
    windows = to_windows(x, window)
    rows, cols = -(-H // h), -(-W // w)
    assert windows.shape == (1, rows * cols, h * w, 2)
    for i in range(rows * h):
        for j in range(cols * w):
            expected = x[0, i, j] if i < H and j < W else torch.zeros(2)
            assert torch.equal(windows[0, i // h * cols + j // w, i % h * w + j % w], expected)
    assert torch.equal(add_windows(torch.zeros_like(x), windows, window), x)


# ---- timm's models

def pair(name='davit_tiny', **kwargs):
    """timm's model and ours, on the same weights, loaded by name."""
    theirs = randomize(timm.create_model(name, **kwargs))
    ours = timm.create_model(f'vz_{name}', **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


SMALL = dict(embed_dims=(32, 64, 96, 160), depths=(1, 2, 1, 1), num_heads=(1, 4, 3, 5), num_classes=10)


@pytest.mark.parametrize('size', [(224, 224), (203, 301), (288, 96), (65, 31), (7, 5), (1, 1)], ids=lambda s: '{}x{}'.format(*s))
def test_equals_timm_at_any_size(size):
    ours, theirs = pair(**SMALL)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert error(ours(x), theirs(x)) < 1e-5
        found, expected = (m.forward_intermediates(x, intermediates_only=True) for m in (ours, theirs))
        assert max(error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5


@pytest.mark.parametrize('kwargs', [
    dict(window_size=5), dict(window_size=12), dict(down_kernel_size=3), dict(channel_attn_v2=True), dict(cpe_act=True),
    dict(mlp_ratio=2.), dict(named_blocks=True), dict(in_chans=1), dict(global_pool='max'),
    dict(window_size=12, down_kernel_size=3, channel_attn_v2=True, named_blocks=True),
], ids=str)
def test_equals_timm_with_options(kwargs):
    ours, theirs = pair(**SMALL | kwargs)
    for size in [(128, 96), (99, 142)]:
        x = torch.randn(1, kwargs.get('in_chans', 3), *size)
        with torch.no_grad():
            assert error(ours(x), theirs(x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', SAME_AS_TIMM.values())
def test_published_sizes_equal_timm(name):
    """In float64, where what is left is no rounding that 24 blocks have carried on."""
    ours, theirs = (m.double() for m in pair(name, num_classes=1000, **dict(window_size=7) if name == 'davit_large' else {}))
    for size in [(224, 224), (203, 301)]:
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            (y, found), (z, expected) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
            assert max(error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-12
            assert error(ours.forward_head(y), theirs.forward_head(z)) < 1e-12


def test_gradients_equal_timm_s():
    ours, theirs = (m.double().train() for m in pair(**SMALL))
    x = torch.randn(2, 3, 72, 104, dtype=torch.float64)
    for model in (ours, theirs):
        model(x).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize('ours, theirs', SAME_AS_TIMM.items())
def test_parameters_are_named_as_timm_s(ours, theirs):
    with torch.device('meta'):
        ours, theirs = timm.create_model(ours), timm.create_model(theirs, num_classes=1000)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize('name', sorted(set(SAME_AS_TIMM.values()) | {'davit_huge', 'davit_giant'}))
def test_timm_keeps_its_names(name):
    assert timm.model_entrypoint(name).__module__ == 'timm.models.davit'
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.architecture == name


@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_weights_come_from_timm_s_hub(size):
    ours, theirs = timm.get_pretrained_cfg(f'vz_davit_{size}'), timm.get_pretrained_cfg(f'davit_{size}')
    assert ours.tag == theirs.tag == 'msft_in1k' and ours.hf_hub_id == f'timm/davit_{size}.msft_in1k' == theirs.hf_hub_id
    for key in ('input_size', 'interpolation', 'crop_pct', 'mean', 'std', 'num_classes', 'first_conv', 'classifier', 'pool_size'):
        assert getattr(ours, key) == getattr(theirs, key), key


def test_window_of_the_large_model():
    """The published one has 12, timm's 7: same parameters, another function."""
    assert {m.window for m in on_meta('vz_davit_large').modules() if isinstance(m, SpatialBlock)} == {(12, 12)}
    assert timm.get_pretrained_cfg('vz_davit_large').input_size == (3, 384, 384)


# ---- the published layouts

OFFICIAL = (
    (r'^stem\.conv\.', 'patch_embeds.0.proj.'), (r'^stem\.norm\.', 'patch_embeds.0.norm.'),
    (r'^stages\.(\d)\.downsample\.conv\.', r'patch_embeds.\1.proj.'), (r'^stages\.(\d)\.downsample\.norm\.', r'patch_embeds.\1.norm.'),
    (r'^stages\.(\d)\.blocks\.', r'main_blocks.\1.'), (r'\.cpe1\.', '.cpe.0.'), (r'\.cpe2\.', '.cpe.1.'),
    (r'^head\.norm\.', 'norms.'), (r'^head\.fc\.', 'head.'),
)
FLORENCE = (
    (r'^stem\.conv\.', 'convs.0.proj.'), (r'^stem\.norm\.', 'convs.0.norm.'),
    (r'^stages\.(\d)\.downsample\.conv\.', r'convs.\1.proj.'), (r'^stages\.(\d)\.downsample\.norm\.', r'convs.\1.norm.'),
    (r'^stages\.(\d)\.blocks\.', r'blocks.\1.'), (r'\.cpe(\d)\.proj\.', r'.conv\1.fn.dw.'),
    (r'(spatial|channel)_block\.norm1\.', r'\1_block.\1_attn.norm.'), (r'(spatial|channel)_block\.attn\.', r'\1_block.\1_attn.fn.'),
    (r'spatial_attn', 'window_attn'), (r'\.norm2\.', '.ffn.norm.'), (r'\.mlp\.', '.ffn.fn.net.'),
)
TRANSFORMERS = (
    (r'^stem\.', 'convs.0.'), (r'^stages\.(\d)\.downsample\.', r'convs.\1.'), (r'^stages\.(\d)\.blocks\.', r'blocks.\1.'),
    (r'\.cpe(\d)\.proj\.', r'.conv\1.'), (r'spatial_block\.attn\.', 'spatial_block.window_attn.'),
    (r'channel_block\.attn\.', 'channel_block.channel_attn.'), (r'\.mlp\.', '.ffn.'),
)


def publish(model, rules, keep=lambda name: True, prefix=''):
    """The state dict under the names that published code gives it."""
    state = {}
    for name, value in model.state_dict().items():
        if keep(name):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            state[prefix + name] = value.clone()
    return state


def no_head(name):
    return not name.startswith('head.')


def norms(dims):
    return {f'norm{i}.{kind}': torch.randn(dim) for i, dim in enumerate(dims) for kind in ('weight', 'bias')}


@pytest.fixture
def source():
    return randomize(timm.create_model('vz_davit_micro'))


def test_classifier_file(source, tmp_path):
    state = publish(source, OFFICIAL)
    model = timm.create_model('vz_davit_micro').eval()
    report = vitzoo.load_checkpoint(model, {'state_dict': {f'module.{k}': v for k, v in state.items()}})
    assert not report.dropped and not report.new and len(report.loaded) == len(state) == len(report.renamed)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x), source(x))
    torch.save({'model': state}, tmp_path / 'davit.pth')
    again = timm.create_model('vz_davit_micro', pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'davit.pth'))).eval()
    with torch.no_grad():
        assert torch.equal(again(x), source(x))


def test_dense_file(source):
    dims = [info['num_chs'] for info in source.feature_info]
    state = publish(source, OFFICIAL, no_head) | norms(dims)
    dense = DenseBackbone('vz_davit_micro').eval()
    assert all(isinstance(getattr(dense, f'norm{i}'), nn.LayerNorm) and getattr(dense, f'norm{i}').eps == 1e-5 for i in range(4))
    detector = {f'backbone.{k}': v for k, v in state.items()} | {'neck.conv.weight': torch.zeros(1)}
    for content in (state, detector):
        report = vitzoo.load_checkpoint(dense, content)
        assert not report.new and len(report.loaded) == len(state)
        assert report.dropped == [k for k in content if k.startswith('neck.')]
    x = torch.randn(1, 3, 50, 66)
    with torch.no_grad():
        for i, (m, feature) in enumerate(zip(dense(x), source.forward_intermediates(x, intermediates_only=True), strict=True)):
            expected = F.layer_norm(feature.permute(0, 2, 3, 1), (dims[i],), state[f'norm{i}.weight'], state[f'norm{i}.bias'], 1e-5)
            torch.testing.assert_close(m, expected.permute(0, 3, 1, 2))


def test_detector_file_for_timm_s_features(source, tmp_path):
    state = publish(source, OFFICIAL, no_head, 'backbone.') | {'neck.conv.weight': torch.zeros(1)}
    torch.save({'state_dict': state}, tmp_path / 'detector.pth')
    options = dict(features_only=True, num_classes=0, pretrained_cfg_overlay=dict(file=str(tmp_path / 'detector.pth')))
    features = timm.create_model('vz_davit_micro', pretrained=True, **options).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for m, expected in zip(features(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
            assert torch.equal(m, expected)


def test_dense_file_without_its_first_norm(source):
    """RetinaNet takes levels 1 to 3 alone."""
    state = publish(source, OFFICIAL, no_head) | norms([info['num_chs'] for info in source.feature_info])
    state = {k: v for k, v in state.items() if not k.startswith('norm0.')}
    dense = DenseBackbone('vz_davit_micro')
    assert sorted(vitzoo.load_checkpoint(dense, state).new) == ['norm0.bias', 'norm0.weight']
    assert dense.norm0.weight.eq(1).all() and dense.norm0.bias.eq(0).all() and torch.equal(dense.norm3.bias, state['norm3.bias'])
    three = DenseBackbone('vz_davit_micro', out_indices=(1, 2, 3))
    assert not vitzoo.load_checkpoint(three, state).new


def test_dense_file_for_a_classifier(source):
    state = publish(source, OFFICIAL, no_head) | norms([info['num_chs'] for info in source.feature_info])
    model = timm.create_model('vz_davit_micro')
    with pytest.raises(ValueError, match='reset_head=True'):
        vitzoo.load_checkpoint(model, state)
    report = vitzoo.load_checkpoint(model, state, reset_head=True)
    assert {k for k in report.new} == {k for k in model.state_dict() if k.startswith('head.')}
    assert sorted(report.dropped) == sorted(k for k in state if re.match(r'norm\d', k))


def test_classifier_file_for_a_dense_backbone(source):
    dense = DenseBackbone('vz_davit_micro')
    for state in (publish(source, OFFICIAL), source.state_dict()):
        report = vitzoo.load_checkpoint(dense, state)
        assert sorted(report.dropped) == sorted(k for k in state if re.match(r'(norms|head)\.', k))
        assert len(report.new) == 8 and all(re.match(r'norm\d\.', k) for k in report.new)


def test_incomplete_file_is_refused(source):
    model = timm.create_model('vz_davit_micro')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for missing in ('norms.weight', 'main_blocks.2.0.1.cpe.1.proj.bias', 'patch_embeds.1.norm.weight'):
        state = publish(source, OFFICIAL)
        del state[missing]
        with pytest.raises(ValueError, match='1 missing'):
            vitzoo.load_checkpoint(model, state)
    with pytest.raises(ValueError, match='1 unexpected'):
        vitzoo.load_checkpoint(model, publish(source, OFFICIAL) | {'main_blocks.0.1.0.norm1.weight': torch.ones(32)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('names, path, others', [
    (FLORENCE, 'vision_tower.', ('image_projection', 'image_proj_norm.weight', 'language_model.lm_head.weight')),
    (TRANSFORMERS, 'model.vision_tower.', (
        'model.multi_modal_projector.image_projection.weight', 'model.language_model.shared.weight', 'lm_head.weight')),
], ids=['its own code', 'transformers'])
def test_florence_file(names, path, others, tmp_path):
    source = randomize(timm.create_model('vz_davit_fl_micro', num_classes=0))
    tower = publish(source, names, no_head, path)
    assert {f'{path}{name}' for name in ('convs.0.conv.weight', 'blocks.0.0.spatial_block.window_attn.qkv.weight',
                                         'blocks.3.0.channel_block.ffn.fc1.bias')} <= tower.keys() or names is FLORENCE
    rest = {name: torch.zeros(1) for name in others}
    model = timm.create_model('vz_davit_fl_micro')
    bare = {k.removeprefix(path): v for k, v in tower.items()}
    as_timm = publish(source, (), no_head)
    for state, dropped in ((tower | rest, list(rest)), (tower, []), (bare, []), (as_timm, [])):
        report = vitzoo.load_checkpoint(model, state)
        assert sorted(report.dropped) == sorted(dropped) and len(report.loaded) == len(tower)
        assert set(report.new) == {k for k in model.state_dict() if k.startswith('head.')}
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model.eval().forward_features(x), source.forward_features(x))
    features = timm.create_model('vz_davit_fl_micro', features_only=True)
    assert not vitzoo.load_checkpoint(features, tower).new
    torch.save(tower | rest, tmp_path / 'florence.bin')
    again = timm.create_model('vz_davit_fl_micro', pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'florence.bin'))).eval()
    with torch.no_grad():
        assert torch.equal(again.forward_features(x), source.forward_features(x))


@pytest.mark.parametrize('name, other', [('vz_davit_tiny', 'vz_davit_small'), ('vz_davit_small', 'vz_davit_tiny'),
                                         ('vz_davit_base', 'vz_davit_small'), ('vz_davit_base', 'vz_davit_base_fl')])
def test_other_sizes_are_refused(name, other):
    state = publish(on_meta(other).to_empty(device='cpu'), OFFICIAL)
    with pytest.raises(ValueError, match='Nothing was loaded'):
        vitzoo.load_checkpoint(on_meta(name).to_empty(device='cpu'), state)


def test_files_of_other_families():
    other = timm.create_model('svit_micro')
    classifier = publish(timm.create_model('vz_davit_micro'), OFFICIAL)
    tower = publish(timm.create_model('vz_davit_fl_micro'), FLORENCE, no_head, 'vision_tower.')
    for state, name in ((classifier, 'vz_davit_tiny'), (timm.create_model('vz_davit_micro').state_dict(), 'vz_davit_tiny'),
                        (tower, 'vz_davit_base_fl')):
        with pytest.raises(ValueError, match=name):
            vitzoo.load_checkpoint(other, state)
    model = timm.create_model('vz_davit_micro')
    with pytest.raises(ValueError, match='swin'):
        vitzoo.load_checkpoint(model, {'layers.0.blocks.0.attn.relative_position_bias_table': torch.ones(1), 'head.weight': torch.ones(1)})
    with pytest.raises(ValueError, match='svit_small'):
        vitzoo.load_checkpoint(model, {'layers.0.blocks.0.stoken_refine.qkv.weight': torch.zeros(1)})


# ---- numbers

def on_meta(name, **kwargs):
    with torch.device('meta'):
        return timm.create_model(name, **kwargs).eval()


@pytest.mark.parametrize('name, number', [('vz_davit_base_fl', 90_370_048), ('vz_davit_huge_fl', 360_636_416)])
def test_parameters_of_florence_s_towers(name, number):
    model = on_meta(name)
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith('head.fc.')) == number


@pytest.mark.parametrize('size, least', [(224, 0.002), (512, 0.025), pytest.param((800, 1216), 0.03, marks=pytest.mark.slow)])
def test_fewer_operations_than_the_plain_computation(size, least):
    """By the merged channel map, and at large sizes the merged values: the saving grows with the map."""
    ours, theirs = (vitzoo.profile(on_meta(name), size).macs for name in ('vz_davit_tiny', 'davit_tiny'))
    assert ours < (1 - least) * theirs


# ---- the model

def test_drop_path_drops_whole_images():
    block = timm.create_model('vz_davit_micro').stages[0].blocks[0][0]
    x = torch.randn(16, 9, 11, 32)
    block.drop_path = DropPath(0.5, scale_by_keep=False).train()
    with torch.no_grad():
        kept, dropped = block.eval().add_attention(x), x
        block.drop_path.train()
        y = block.add_attention(x)
    which = [torch.allclose(a, b, atol=1e-6) for a, b in zip(y, kept, strict=True)]
    assert 0 < sum(which) < 16
    assert all(w or torch.equal(a, b) for w, a, b in zip(which, y, dropped, strict=True))


def test_new_classifier_keeps_the_trained_norm():
    model = randomize(timm.create_model('vz_davit_micro'))
    weight = model.head.norm.weight.clone()
    model.reset_classifier(5)
    assert torch.equal(model.head.norm.weight, weight) and model.head.fc.weight.shape == (5, 160)
    model.reset_classifier(0)
    assert torch.equal(model.head.norm.weight, weight)
    model.reset_classifier(0, '')
    assert not list(model.head.parameters())
    model.reset_classifier(3, 'avg')
    assert model.head.norm.weight.eq(1).all()


def test_head_norms_what_was_pooled():
    model = randomize(timm.create_model('vz_davit_micro', global_pool='catavgmax', num_classes=4))
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        expected = torch.cat([model.head.norm(pooled) for pooled in (features.mean((2, 3)), features.amax((2, 3)))], 1)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)


def test_padding_of_the_downsampling_is_zero_after_the_norm():
    for kernel_size in (2, 3):
        down = randomize(Downsample(4, 6, kernel_size, dtype=torch.float64))
        x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
        padded = F.pad(down.norm(x), (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)
        expected = F.conv2d(padded, down.conv.weight, down.conv.bias, stride=2, padding=kernel_size // 3)
        torch.testing.assert_close(down(x), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 1), (16, 16)])
def test_downsampling_of_small_and_large_maps(size):
    """A small map takes the form of a linear layer."""
    down = randomize(Downsample(4, 6, 2, dtype=torch.float64))
    x = torch.randn(1, *size, 4, dtype=torch.float64)
    with torch.no_grad():
        many = down(x.expand(8, -1, -1, -1).contiguous())
        torch.testing.assert_close(down(x), many[:1])
        torch.testing.assert_close(down._forward_linear(F.pad(down.norm(x), (0, 0, 0, size[1] % 2, 0, size[0] % 2))), many[:1])


def test_image_needs_no_padding_before_the_stem():
    """The published code pads with zeros to a multiple of 4; the convolution's own padding does."""
    stem = randomize(timm.create_model('vz_davit_micro').stem)
    with torch.no_grad():
        for size in [(8, 12), (9, 14), (11, 13), (1, 3)]:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(stem(x), stem(F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))))


def test_position_encoding():
    for act in (False, True):
        cpe = randomize(ConvPosEnc(6, act, dtype=torch.float64))
        x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        y = F.conv2d(x.permute(0, 3, 1, 2), cpe.proj.weight, cpe.proj.bias, padding=1, groups=6).permute(0, 2, 3, 1)
        torch.testing.assert_close(cpe(x), x + (F.gelu(y) if act else y))


@pytest.mark.parametrize('kwargs, message', [
    (dict(depths=(1, 1)), r'depths=\(1, 1\): expected one value per stage'),
    (dict(depths=(1, 1, 0, 1)), r'depths=\(1, 1, 0, 1\).*at least 1'),
    (dict(num_heads=3), r'num_heads=3: expected a list of integers'),
    (dict(num_heads=(1, 2, 3, 0)), r'num_heads=\(1, 2, 3, 0\)'),
    (dict(embed_dims=(30, 64, 96, 161)), r'161 channels must divide into 5 heads'),
    (dict(window_size=0), r'window_size=0: expected a positive'),
    (dict(window_size=(7, 7, 7)), r'window_size=\(7, 7, 7\).*pair'),
    (dict(down_kernel_size=4), r'down_kernel_size=4: expected 2, or 3'),
    (dict(mlp_ratio=0.), r'mlp_ratio=0.0'),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('vz_davit_micro', **kwargs)


def test_windows_need_not_be_square():
    model = DaViT(window_size=(3, 8), embed_dims=(16, 32, 32, 32), num_heads=(1, 2, 2, 2), num_classes=2)
    assert model(torch.randn(1, 3, 77, 45)).shape == (1, 2)


@pytest.mark.parametrize('name', ['vz_davit_micro', 'vz_davit_fl_micro'])
def test_one_onnx_file_for_any_size(name, tmp_path):
    pytest.importorskip('onnxruntime')
    model = timm.create_model(name).eval()
    report = vitzoo.export_onnx(model, tmp_path / 'davit.onnx', (64, 96), opset=17, dynamic_size=True, rounds=0)
    assert len({(check.height, check.width) for check in report.checks}) == 4


@pytest.mark.parametrize('size', [(14, 21), (10, 13)])
def test_windows_and_heads_at_once(size):
    window, heads, x = (7, 7), 3, torch.randn(2, *size, 12)
    windows = davit.to_windows(x, window)  # (B, M, 49, C)
    found = davit.to_window_heads(davit.pad_to_windows(x, window), window, heads)
    torch.testing.assert_close(found, split_heads(windows.flatten(0, 1), heads), rtol=0, atol=0)
    torch.testing.assert_close(davit.from_window_heads(found, window, *size), x, rtol=0, atol=0)
