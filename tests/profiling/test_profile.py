import json
from io import StringIO

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

import vitzoo
from vitzoo.profiling import count_macs, count_traffic, on_meta, take_turns
from vitzoo.profiling.latency import Timings


def deit_macs(size: int, dim: int, depth: int, patch: int = 16, mlp_ratio: int = 4, classes: int = 1000) -> int:
    """Patch embedding, then per block qkv, scores, weighted sum, projection and MLP over patches and class token, then the head."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    block = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim + 2 * tokens * dim * mlp_ratio * dim
    return patches * 3 * patch * patch * dim + depth * block + dim * classes


def test_macs_of_a_vit_are_the_analytic_count():
    with torch.device('meta'):
        model = timm.create_model('deit_small_patch16_224')
    assert vitzoo.profile(model, 224).macs == deit_macs(224, 384, 12) == 4_598_882_304


def test_macs_do_not_depend_on_the_attention_kernel_or_the_device(monkeypatch):
    counts = set()
    for fused in (0, 1):
        monkeypatch.setattr('timm.layers.config._USE_FUSED_ATTN', fused)
        model = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2).eval()
        assert model.blocks[0].attn.fused_attn == bool(fused)
        counts |= {vitzoo.profile(model, 64).macs, count_macs(model, torch.randn(1, 3, 64, 64))}
    assert counts == {deit_macs(64, 192, 2)}


def test_the_opaque_attention_of_torch_is_counted():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoder(layer, 1)).eval()
    tokens, dim = 5, 32
    expected = 4 * tokens * dim * dim + 2 * tokens * tokens * dim + 2 * tokens * dim * 64
    assert count_macs(model, torch.randn(1, tokens, 4, 8)) == vitzoo.profile(model, (tokens, 4, 8)).macs == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_traffic_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10, bias=False))
    result = vitzoo.profile(model, 4, batch=2)
    convolution = 2 * 3 * 16 + 8 * 3 * 9 + 8 + 2 * 8 * 16  # image, kernel, bias, map
    relu = 2 * (2 * 8 * 16)
    linear = 2 * 8 * 16 + 8 * 16 * 10 + 2 * 10  # the flattening before it is a view
    assert result.operators == 3
    assert result.bytes_moved == 2 * (convolution + relu + linear) / 2
    assert result.activations == 8 * 16 + 10
    assert result.macs == 16 * 8 * 27 + 8 * 16 * 10
    assert result.params == 8 * 27 + 8 + 1280
    assert vitzoo.profile(model, 4, batch=2, element_bytes=4).bytes_moved == 2 * result.bytes_moved


def test_fused_attention_is_one_operator_and_an_expanded_input_costs_its_storage():
    def attend(x):
        bias = x.new_empty(1, 1, 6, 6).expand(4, 2, 6, 6)
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=bias)

    real = nn.functional.scaled_dot_product_attention
    traffic = count_traffic(attend, torch.empty(4, 2, 6, 8, device='meta'))
    assert (traffic.operators, traffic.bytes) == (1, 2 * (4 * (4 * 2 * 6 * 8) + 36))
    assert nn.functional.scaled_dot_product_attention is real


# counted on meta tensors by an independent counter of the same definition: batch 128, 2 bytes an element
@pytest.mark.parametrize('name, megabytes, operators', [
    ('deit_small_patch16_224', 78.0, 149), ('swin_tiny_patch4_window7_224', 241.0, 382), ('convnext_tiny', 122.2, 138),
    ('davit_tiny', 195.6, 301), ('mobilenetv4_conv_small', 23.7, 134), ('swiftformer_s', 86.7, 309),
])
def test_traffic_of_known_models(name, megabytes, operators):
    with torch.device('meta'):  # no weights, no time
        model = timm.create_model(name)
    result = vitzoo.profile(model, 224)
    assert (round(result.bytes_moved / 1e6, 1), result.operators) == (megabytes, operators)


def test_the_model_is_left_as_it_was():
    model = timm.create_model('resnet10t', num_classes=5).train()
    model.bn1.eval()
    model.conv1[0].weight.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    threads = torch.get_num_threads()
    vitzoo.profile(model, 64, latency_batches=(1,), rounds=1)
    assert modes == [m.training for m in model.modules()]
    assert threads == torch.get_num_threads()
    assert not model.conv1[0].weight.requires_grad and model.fc.weight.requires_grad and model.fc.weight.grad is None
    assert all(v.device.type == 'cpu' and v.equal(state[k]) for k, v in model.state_dict().items())


def test_a_meta_copy_keeps_ties_and_dtypes():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)]).bfloat16()
    model[1].weight = model[0].weight
    meta = on_meta(model)
    assert meta[1].weight is meta[0].weight and meta[0].weight.dtype == torch.bfloat16
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers()))


def test_precision_does_not_change_the_counts():
    model = timm.create_model('test_vit')
    assert vitzoo.profile(model, 160).to_dict() == vitzoo.profile(model.bfloat16(), 160).to_dict()


def test_report():
    result = vitzoo.profile(timm.create_model('resnet10t', in_chans=1), (64, 96), latency_batches=(1, 2), rounds=1)
    assert result.input_size == (1, 64, 96)
    assert set(result.latency_ms) == {1, 2} and min(result.latency_ms.values()) > 0
    assert json.loads(json.dumps(result.to_dict()))['model'] == 'resnet10t'
    out = StringIO()
    Console(file=out, width=120).print(result)
    assert f'{result.params:,}' in out.getvalue() and str(result.operators) in out.getvalue()


@pytest.mark.parametrize('arguments, message', [
    (('resnet10t', 64), 'nn.Module'),
    ((nn.Conv2d(3, 4, 3), 0), 'input_size=0: expected a number'),
    ((nn.Conv2d(3, 4, 3), 64.), 'input_size=64.0: expected an integer'),
    ((nn.Conv2d(3, 4, 3), (1, 3, 64, 64)), r'\(C, H, W\)'),
    ((nn.Conv2d(3, 4, 3), (4, 64, 64)), 'cannot be counted at'),
])
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vitzoo.profile(*arguments)


@pytest.mark.parametrize('options', [dict(batch=0), dict(element_bytes=-1), dict(latency_batches=(0,)), dict(rounds=0)])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        vitzoo.profile(nn.Conv2d(3, 4, 3), 8, **options)


def test_candidates_take_turns():
    calls = []
    timings = take_turns({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, rounds=3, min_seconds=0)
    assert ''.join(calls) == 'aabb' + 'ab' * 3
    assert all(len(clock[name]) == 3 for clock in (timings.cpu, timings.wall) for name in 'ab')
    with pytest.raises(ValueError, match='rounds=0'):
        take_turns({}, rounds=0)


def test_ratios_are_taken_within_a_round():
    timings = Timings(cpu={'old': [2., 8., 3.], 'new': [1., 2., 2.]})
    assert timings.speed_up('new', over='old') == (2., 1.5, 4.)
    assert timings.median_ms('old') == 3000.
