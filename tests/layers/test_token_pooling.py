"""Token-aware average pooling against the published operator, and what it promises besides."""
import copy

import golden
import numpy as np
import pytest
import torch

from vitzoo.layers import TokenAwarePooling

CASES = ('tap-c32-k1', 'tap-c48-k4', 'tap-c64-k3-9x13')


def pooling(dim=16, num_scales=4, **kwargs):
    """In eval mode, with statistics far from their initial values."""
    tap = TokenAwarePooling(dim, num_scales, **kwargs).eval()
    tap.proj[1].running_mean.normal_(std=0.1)
    tap.proj[1].running_var.uniform_(0.8, 1.2)
    return tap


@pytest.mark.parametrize('case', CASES)
@torch.inference_mode()
def test_published_operator(case):
    facts, published = golden.load_case(f'tap_adl/{case}.npz')
    tap = TokenAwarePooling(facts['notes']['dim'], facts['notes']['num_scales']).eval()
    state = golden.make_state_dict(facts['entries'], facts['rescale'])
    tap.load_state_dict({name.removeprefix('dilation_predictor.'): x for name, x in state.items()} | {
        'proj.1.num_batches_tracked': torch.tensor(0)})
    x = golden.make_input(facts['seed'], facts['shape'])
    channels_last = x.permute(0, 2, 3, 1).contiguous()
    index = facts['notes']['pooled_index']
    assert golden.error(tap.mask(channels_last).numpy(), published['mask']) < 1e-5
    assert golden.error(golden.take(tap.forward_nchw(x), index), published['pooled']) < 1e-5
    assert golden.error(golden.take(tap(channels_last).permute(0, 3, 1, 2), index), published['pooled']) < 1e-5


def loops(x, mask):
    """The definition, position by position: x (H, W, C), mask (H, W, K)."""
    y = np.zeros_like(x)
    H, W, _ = x.shape
    for r in range(H):
        for c in range(W):
            y[r, c] = mask[r, c, 0] * x[r, c]
            for k in range(1, mask.shape[2]):
                near = [x[r + i * k, c + j * k] for i in (-1, 0, 1) for j in (-1, 0, 1) if 0 <= r + i * k < H and 0 <= c + j * k < W]
                y[r, c] += mask[r, c, k] * np.sum(near, axis=0) / 9
    return y


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (7, 4)])
@torch.inference_mode()
def test_equals_loops(size):
    tap, x = pooling(8).double(), torch.randn(2, *size, 8, dtype=torch.float64)
    expected = [loops(*pair) for pair in zip(x.numpy(), tap.mask(x).numpy(), strict=True)]
    np.testing.assert_allclose(tap(x).numpy(), expected, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_one_scale_is_the_identity():
    x = torch.randn(2, 5, 6, 16)
    assert pooling(num_scales=1)(x).equal(x)


@torch.inference_mode()
def test_constant_map_stays_away_from_the_border():
    tap, x = pooling(), torch.ones(1, 9, 11, 16) * torch.randn(16)
    y = tap(x)
    torch.testing.assert_close(y[:, 3:-3, 3:-3], x[:, 3:-3, 3:-3])
    assert (y[:, 0] - x[:, 0]).abs().max() > 1e-2  # zeros outside count


@torch.inference_mode()
def test_shares_sum_to_one():
    mask = pooling().mask(torch.randn(2, 6, 5, 16))
    assert mask.shape == (2, 6, 5, 4)
    torch.testing.assert_close(mask.sum(-1), torch.ones(2, 6, 5))


@torch.inference_mode()
def test_offset_begins_near_the_identity():
    x = torch.randn(2, 6, 5, 16)
    disturbed, kept = ((tap(x) - x).abs().max() for tap in (pooling(), pooling(offset=10.)))
    assert kept < 5e-3 < 0.1 < disturbed


def test_state_is_the_published_one():
    names = [name for name in TokenAwarePooling(16).state_dict() if 'num_batches' not in name]
    facts, _ = golden.load_case('tap_adl/tap-c48-k4.npz')
    assert [f'dilation_predictor.{name}' for name in names] == [name for name, *_ in facts['entries']]
    for K in (1, 4):
        assert sum(p.numel() for p in TokenAwarePooling(16, K).parameters()) == 9 * 16 * K + 9 * K * K + 2 * K


def test_every_parameter_learns():
    tap = TokenAwarePooling(16)
    tap(torch.randn(2, 6, 5, 16)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in tap.parameters())


def test_built_without_memory():
    tap = TokenAwarePooling(16, device='meta').to_empty(device='cpu')
    tap.init_non_persistent_buffers()
    like = pooling()
    tap.load_state_dict(like.state_dict())
    x = torch.randn(2, 6, 5, 16)
    with torch.inference_mode():
        assert tap.eval()(x).equal(like(x))


@torch.inference_mode()
def test_low_precision_and_copies():
    tap, x = pooling(), torch.randn(2, 6, 5, 16)
    assert copy.deepcopy(tap)(x).equal(tap(x))
    low = copy.deepcopy(tap).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16 and golden.error(low.float().numpy(), tap(x).numpy()) < 3e-2


@pytest.mark.parametrize('options', [dict(dim=0), dict(dim=8, num_scales=0), dict(dim=8, num_scales=65), dict(dim=8, offset=float('nan'))])
def test_bad_options(options):
    with pytest.raises(ValueError, match=f'{list(options)[-1]}='):
        TokenAwarePooling(**options)


def test_onnx(tmp_path):
    """Convolutions, products and a softmax, nothing else of weight; the same values in ONNX Runtime."""
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    tap, x = pooling(), torch.randn(2, 7, 9, 16)
    path = tmp_path / 'tap.onnx'
    torch.onnx.export(tap, (x,), path, input_names=['x'], dynamo=True, opset_version=20, verbose=False)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    known = {'Transpose', 'Conv', 'BatchNormalization', 'Softmax', 'Split', 'Slice', 'Mul', 'Div', 'Add'}
    assert set(kinds) <= known and len(kinds) <= 24, kinds
    found, = runtime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'x': x.numpy()})
    with torch.inference_mode():
        assert golden.error(found, tap(x).numpy()) < 1e-5
