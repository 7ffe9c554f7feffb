"""Every operator of the stand-in for `mmcv._ext`, called through mmcv's wrappers, against plain loops written here from the definitions."""
import inspect
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')

from vitzoo.mm.ops import activate  # noqa: E402

activate()
import mmcv.ops as mo  # noqa: E402

from vitzoo.mm.ops import _ext as stand_in  # noqa: E402

OPERATORS = {
    'nms', 'nms_match', 'softnms', 'roi_align_forward', 'roi_align_backward', 'roi_pool_forward', 'roi_pool_backward',
    'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward', 'ms_deform_attn_forward', 'ms_deform_attn_backward',
    'deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters', 'modulated_deform_conv_forward',
    'modulated_deform_conv_backward', 'bbox_overlaps', 'get_compiler_version', 'get_compiling_cuda_version'}


@pytest.fixture(autouse=True)
def use_stand_in(monkeypatch):
    """The wrappers call the stand-in also where a compiled mmcv is installed."""
    for name in ('bbox', 'deform_conv', 'focal_loss', 'info', 'modulated_deform_conv', 'multi_scale_deform_attn', 'nms', 'roi_align',
                 'roi_pool', 'carafe'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', stand_in)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(op, reference, inputs, atol=1e-9):
    """Values, and gradients of each float64 input for one random cotangent, of `op` and `reference`."""
    ours, theirs = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    out, ref = op(*ours), reference(*theirs)
    assert out.shape == ref.shape
    torch.testing.assert_close(out, ref, atol=atol, rtol=0)
    cotangent = randn(*ref.shape, seed=1)
    for a, b in zip(torch.autograd.grad(out, ours, cotangent), torch.autograd.grad(ref, theirs, cotangent), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_exactly_these_operators():
    assert {name for name, f in inspect.getmembers(stand_in, inspect.isfunction) if not name.startswith('_')} == OPERATORS


def test_other_operators_name_themselves():
    with pytest.raises(NotImplementedError, match=r"'carafe_forward'.*install mmcv 2\.1\.0 compiled"):
        mo.carafe(torch.rand(1, 4, 2, 2), torch.rand(1, 9, 4, 4), 3, 1, 2)
    with pytest.raises(AttributeError):
        stand_in.__nothing__  # noqa: B018


def test_compiler_information():
    assert mo.get_compiler_version().startswith('none (vitzoo on torch')
    assert mo.get_compiling_cuda_version() == 'not available'


# boxes

def iou(a, b, offset=0, of_first=False):
    (ax, ay, aX, aY), (bx, by, bX, bY) = a, b
    inter = max(0, min(aX, bX) - max(ax, bx) + offset) * max(0, min(aY, bY) - max(ay, by) + offset)
    area = (aX - ax + offset) * (aY - ay + offset)
    base = area if of_first else area + (bX - bx + offset) * (bY - by + offset) - inter
    return inter / base if base else 0


def best_first(scores):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def nms_loop(boxes, scores, threshold, offset=0):
    kept = []
    for i in best_first(scores):
        if all(iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft_nms_loop(boxes, scores, threshold, sigma, min_score, method, offset=0):
    scores, rest, kept = list(scores), list(range(len(scores))), []
    while rest:
        k = min(rest, key=lambda i: (-scores[i], i))
        rest.remove(k)
        kept.append(k)
        for i in rest:
            v = iou(boxes[k], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= math.exp(-v * v / sigma)
            elif v >= threshold:
                scores[i] *= 1 - v if method == 'linear' else 0
        rest = [i for i in rest if scores[i] >= min_score]
    return kept, [scores[k] for k in kept]


def random_boxes(n, seed=0):
    r = np.random.default_rng(seed)
    corner, size = r.uniform(0, 20, (n, 2)), r.uniform(1, 12, (n, 2))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)), torch.from_numpy(r.permutation(n) / n + 0.01)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
def test_nms(offset, threshold):
    boxes, scores = random_boxes(40)
    dets, kept = mo.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == nms_loop(boxes.tolist(), scores.tolist(), threshold, offset)
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(30)
    dets, kept = mo.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    expected, decayed = soft_nms_loop(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == expected and 0 < len(expected) < 30
    torch.testing.assert_close(dets, torch.cat([boxes[kept], torch.tensor(decayed).double()[:, None]], 1))


def test_soft_nms_does_not_check_the_first_box():
    dets, kept = mo.soft_nms(torch.tensor([[0., 0, 1, 1], [5, 5, 6, 6]]), torch.tensor([0.01, 0.02]), min_score=0.1)
    assert kept.tolist() == [1] and dets.shape == (1, 5)


def test_nms_match():
    boxes, scores = random_boxes(30)
    groups = mo.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.3)
    kept = nms_loop(boxes.tolist(), scores.tolist(), 0.3)
    assert [g[0].item() for g in groups] == kept
    assert sorted(i for g in groups for i in g.tolist()) == list(range(30))
    for n, group in enumerate(groups):
        assert group.tolist() == [i for i in best_first(scores.tolist()) if i in group]
        for i in group[1:].tolist():  # each belongs to the best box that suppresses it
            assert next(k for k in kept if iou(boxes[k].tolist(), boxes[i].tolist()) >= 0.3) == kept[n]


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(mode, offset):
    a, b = random_boxes(7)[0], random_boxes(5, seed=1)[0]
    expected = torch.tensor([[iou(p, q, offset, mode == 'iof') for q in b.tolist()] for p in a.tolist()]).double()
    torch.testing.assert_close(mo.bbox_overlaps(a, b, mode, offset=offset), expected)
    torch.testing.assert_close(mo.bbox_overlaps(a[:5], b, mode, aligned=True, offset=offset), expected[:5].diagonal())


def test_equal_scores_keep_the_order_of_the_input():
    boxes = torch.tensor([[9., 9, 12, 12], [0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 7, 7]])
    scores = torch.full((4,), 0.5)
    assert mo.nms(boxes, scores, 0.5)[1].tolist() == [0, 1, 3]
    assert mo.soft_nms(boxes, scores, 0.5, method='naive')[1].tolist() == [0, 1, 3]
    assert [g.tolist() for g in mo.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)] == [[0], [1, 2], [3]]


def test_threshold_met_exactly():
    """IoU 0.5 at threshold 0.5: nms keeps, soft-NMS and nms_match act, as the compiled operators do."""
    boxes, scores = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 1]]), torch.tensor([0.9, 0.8])
    assert mo.nms(boxes, scores, 0.5)[1].tolist() == [0, 1]
    assert mo.soft_nms(boxes, scores, 0.5, method='naive')[1].tolist() == [0]
    assert [g.tolist() for g in mo.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)] == [[0, 1]]


def test_boxes_without_area_overlap_nothing():
    boxes, scores = torch.tensor([[3., 3, 3, 3]] * 3), torch.tensor([0.3, 0.2, 0.1])
    assert mo.nms(boxes, scores, 0.1)[1].tolist() == [0, 1, 2]
    assert mo.nms(boxes, scores, 0.1, offset=1)[1].tolist() == [0]  # with the offset they are boxes of one pixel
    for method in ('naive', 'linear', 'gaussian'):
        dets, kept = mo.soft_nms(boxes, scores, 0.1, method=method)
        assert kept.tolist() == [0, 1, 2] and torch.equal(dets[:, 4], scores)
    assert len(mo.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.1)) == 3
    assert not mo.bbox_overlaps(boxes, boxes).any()
    assert mo.bbox_overlaps(boxes, boxes, offset=1).eq(1).all()


def test_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    assert mo.nms(boxes, scores, 0.5)[1].shape == (0,)
    dets, kept = mo.soft_nms(boxes, scores)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    assert mo.nms_match(torch.zeros(0, 5), 0.5) == [] and stand_in.nms_match(torch.zeros(0, 5), 0.5) == []
    assert mo.bbox_overlaps(boxes, torch.rand(3, 4)).shape == (0, 3)
    assert mo.batched_nms(boxes, scores, torch.zeros(0, dtype=torch.long), None)[0].shape == (0, 5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    boxes, scores = (t.to(dtype) for t in random_boxes(20))
    assert mo.nms(boxes, scores, 0.3)[1].tolist() == nms_loop(boxes.tolist(), scores.tolist(), 0.3)
    dets, kept = mo.soft_nms(boxes, scores)
    assert dets.dtype == dtype and len(kept)
    x, rois = randn(1, 2, 6, 6).to(dtype), torch.tensor([[0., 1, 1, 4, 5]]).to(dtype)
    for op in (mo.roi_align, mo.roi_pool):
        ours, exact = x.clone().requires_grad_(), x.float().requires_grad_()
        out, ref = op(ours, rois, 2, 1.0), op(exact, rois.float(), 2, 1.0)
        out.sum().backward()
        ref.sum().backward()
        assert torch.equal(out, ref.to(dtype)) and torch.equal(ours.grad, exact.grad.to(dtype))
    offset, weight = randn(1, 18, 6, 6).to(dtype), randn(3, 2, 3, 3).to(dtype).requires_grad_()
    out = mo.deform_conv2d(x, offset, weight, 1, 1)
    out.sum().backward()
    expected = mo.deform_conv2d(x.float(), offset.float(), weight.detach().float(), 1, 1)
    assert out.dtype == weight.grad.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


# pooling of regions

ROIS = torch.tensor([
    [0, 0.3, 0.7, 3.9, 4.6], [1, 2.2, 1.1, 9.7, 8.4],
    [1, -3.0, -2.5, 2.5, 3.5],  # reaches out of the image
    [0, 20.0, 20.0, 30.0, 30.0],  # outside
    [0, 2.5, 2.5, 2.5, 2.5],  # without area
]).double()


def roi_align_loop(x, size, scale, sampling, aligned):
    N, C, H, W = x.shape
    h, w = size

    def sample(plane, y, x):
        if not (-1 <= y <= H and -1 <= x <= W):
            return plane.new_zeros(C)
        y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
        y0, x0 = min(int(y), H - 1), min(int(x), W - 1)
        y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
        v, u = y - y0, x - x0
        return (plane[:, y0, x0] * (1 - v) * (1 - u) + plane[:, y0, x1] * (1 - v) * u
                + plane[:, y1, x0] * v * (1 - u) + plane[:, y1, x1] * v * u)

    out = []
    for n, *box in ROIS.tolist():
        x0, y0, x1, y1 = (c * scale - (0.5 if aligned else 0) for c in box)
        width, height = (x1 - x0, y1 - y0) if aligned else (max(x1 - x0, 1), max(y1 - y0, 1))
        rows, columns = (sampling, sampling) if sampling else (math.ceil(height / h), math.ceil(width / w))
        for i in range(h):
            for j in range(w):
                points = [sample(x[int(n)], y0 + (i + (a + 0.5) / rows) * height / h, x0 + (j + (b + 0.5) / columns) * width / w)
                          for a in range(rows) for b in range(columns)]
                out.append(sum(points) / len(points) if points else x.new_zeros(C))
    return torch.stack(out).view(len(ROIS), h, w, C).permute(0, 3, 1, 2)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.4])
def test_roi_align(scale, sampling, aligned):
    check(lambda x: mo.roi_align(x, ROIS, (2, 3), scale, sampling, 'avg', aligned),
          lambda x: roi_align_loop(x, (2, 3), scale, sampling, aligned), [randn(2, 3, 7, 8)])


def test_roi_align_max_is_refused():
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        mo.roi_align(randn(1, 1, 4, 4), ROIS[:1], 2, 1.0, 2, 'max', True)


def roi_pool_loop(x, size, scale):
    N, C, H, W = x.shape
    h, w = size
    out = []
    for n, x0, y0, x1, y1 in ROIS.tolist():
        width, height = (x1 + 1 - x0) * scale, (y1 + 1 - y0) * scale
        for i in range(h):
            for j in range(w):
                top, bottom = math.floor(i * height / h + y0 * scale), math.ceil((i + 1) * height / h + y0 * scale)
                left, right = math.floor(j * width / w + x0 * scale), math.ceil((j + 1) * width / w + x0 * scale)
                region = x[int(n), :, max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
                out.append(region.flatten(1).max(1).values if region.numel() else x.new_zeros(C))
    return torch.stack(out).view(len(ROIS), h, w, C).permute(0, 3, 1, 2)


@pytest.mark.parametrize('scale', [1.0, 0.4])
def test_roi_pool(scale):
    check(lambda x: mo.roi_pool(x, ROIS, (2, 3), scale), lambda x: roi_pool_loop(x, (2, 3), scale) + 0 * x.sum(), [randn(2, 3, 7, 8)])


def test_inverted_rois_pool_nothing():
    x = randn(1, 2, 6, 6).requires_grad_()
    out = mo.roi_pool(x, torch.tensor([[0., 5, 5, 1, 1]]).double(), 3, 1.0)
    out.sum().backward()
    assert not out.any() and not x.grad.any()


@pytest.mark.parametrize('op', [lambda x, r: mo.roi_align(x, r, (2, 3), 1.0, 2), lambda x, r: mo.roi_pool(x, r, (2, 3), 1.0)],
                         ids=['align', 'pool'])
def test_no_rois(op):
    x = randn(2, 3, 7, 8).requires_grad_()
    out = op(x, ROIS[:0])
    out.sum().backward()
    assert out.shape == (0, 3, 2, 3) and not x.grad.any()


# focal loss

@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6)])
@pytest.mark.parametrize('class_weight', [None, torch.tensor([0.5, 2.0, 1.5]).double()])
def test_sigmoid_focal_loss(gamma, alpha, class_weight):
    target = torch.tensor([0, 2, 1, 3, 0])  # 3 is background

    def loop(x):
        total = 0
        for n, t in enumerate(target.tolist()):
            for c in range(3):
                p = 1 / (1 + torch.exp(-x[n, c]))
                term = -alpha * (1 - p) ** gamma * torch.log(p) if t == c else -(1 - alpha) * p ** gamma * torch.log(1 - p)
                total = total + term * (1 if class_weight is None or t == 3 else class_weight[t])
        return total / len(target)

    check(lambda x: mo.sigmoid_focal_loss(x, target, gamma, alpha, class_weight, 'mean'), loop, [randn(5, 3) * 3])


def test_focal_loss_stays_finite_and_takes_nothing():
    x = torch.tensor([[100., -100], [-100, 100]]).requires_grad_()
    loss = mo.sigmoid_focal_loss(x, torch.tensor([0, 0]), 0.5, 0.25, None, 'sum')
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    empty = torch.zeros(0, 3, requires_grad=True)
    mo.sigmoid_focal_loss(empty, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum').backward()
    assert empty.grad.shape == (0, 3)


# sampling at real positions

def bilinear(plane, y, x):
    """Value (C,) of `plane` (C, H, W) at tensors y, x, zero outside; differentiable in all three (towards larger y, x at whole ones)."""
    if y <= -1 or x <= -1:  # mmcv takes the border itself as outside
        return 0 * (y + x) + plane.new_zeros(len(plane))
    y0, x0 = math.floor(y.item()), math.floor(x.item())
    total = 0 * (y + x) + plane.new_zeros(len(plane))
    for i, v in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for j, u in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= i < plane.shape[1] and 0 <= j < plane.shape[2]:
                total = total + plane[:, i, j] * v * u
    return total


def test_ms_deform_attn():
    shapes = torch.tensor([[3, 4], [2, 1]])
    starts = torch.tensor([0, 12])
    value, weights = randn(2, 14, 2, 3), randn(2, 5, 2, 2, 2, seed=2).softmax(-1)
    locations = randn(2, 5, 2, 2, 2, 2, seed=3) * 0.4 + 0.5  # some outside of the map

    def loop(value, locations, weights):
        out = []
        for n in range(2):
            for q in range(5):
                for m in range(2):
                    total = 0
                    for level, (H, W) in enumerate(shapes.tolist()):
                        plane = value[n, starts[level]:starts[level] + H * W, m].T.reshape(-1, H, W)
                        for p in range(2):
                            x, y = locations[n, q, m, level, p] * torch.tensor([W, H]) - 0.5
                            total = total + weights[n, q, m, level, p] * bilinear(plane, y, x)
                    out.append(total)
        return torch.stack(out).view(2, 5, 6)

    f = mo.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    check(lambda v, s, a: f(v, shapes, starts, s, a, 64), loop, [value, locations, weights])
    half = f(value.half(), shapes, starts, locations, weights, 64)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), loop(value, locations, weights), atol=2e-3, rtol=0)


def deform_conv_loop(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    N, (out_channels, per_group, h, w) = len(x), weight.shape
    out = []
    for n in range(N):
        for i in range(offset.shape[2]):
            for j in range(offset.shape[3]):
                samples = []
                for a in range(h):
                    for b in range(w):
                        parts = []
                        for g, part in enumerate(x[n].chunk(deform_groups)):
                            k = (g * h + a) * w + b
                            y = i * stride[0] - padding[0] + a * dilation[0] + offset[n, 2 * k, i, j]
                            u = j * stride[1] - padding[1] + b * dilation[1] + offset[n, 2 * k + 1, i, j]
                            parts.append(bilinear(part, y, u) * (1 if mask is None else mask[n, k, i, j]))
                        samples.append(torch.cat(parts))
                columns = torch.stack(samples, 1).view(groups, per_group, -1)
                out.append(torch.einsum('gck,gock->go', columns, weight.view(groups, -1, per_group, h * w)).flatten() + bias)
    return torch.stack(out).view(N, *offset.shape[2:], out_channels).permute(0, 3, 1, 2)


# offsets of 0, with which layers start, put samples on whole pixels and on the outer border
@pytest.mark.parametrize('spread', [0, 1])
@pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_deform_conv(groups, deform_groups, spread):
    geometry = (2, 1), (1, 0), (1, 2), groups, deform_groups
    x, weight = randn(2, 4, 5, 6), randn(6, 4 // groups, 2, 3, seed=2)
    offset = spread * randn(2, deform_groups * 12, 3, 2, seed=3)
    check(lambda x, o, w: mo.deform_conv2d(x, o, w, *geometry),
          lambda x, o, w: deform_conv_loop(x, o, None, w, 0, *geometry), [x, offset, weight])


@pytest.mark.parametrize('spread', [0, 1])
@pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_modulated_deform_conv(groups, deform_groups, spread):
    geometry = (2, 1), (1, 1), (1, 2), groups, deform_groups
    x, weight, bias = randn(2, 4, 5, 6), randn(6, 4 // groups, 2, 3, seed=2), randn(6, seed=4)
    offset, mask = spread * randn(2, deform_groups * 12, 3, 4, seed=3), randn(2, deform_groups * 6, 3, 4, seed=5).sigmoid()
    check(lambda x, o, m, w, b: mo.modulated_deform_conv2d(x, o, m, w, b, *geometry),
          lambda x, o, m, w, b: deform_conv_loop(x, o, m, w, b, *geometry), [x, offset, mask, weight, bias])
    check(lambda x, o, m, w: mo.modulated_deform_conv2d(x, o, m, w, None, *geometry),
          lambda x, o, m, w: deform_conv_loop(x, o, m, w, 0, *geometry), [x, offset, mask, weight])


def test_deform_conv_on_no_images():
    out, none = torch.zeros(0, 2, 5, 6), torch.zeros(0)  # mmcv's wrappers refuse an empty batch before they call
    stand_in.modulated_deform_conv_forward(torch.zeros(0, 4, 5, 6), torch.rand(2, 4, 3, 3), none, none, torch.zeros(0, 18, 5, 6),
                                           torch.zeros(0, 9, 5, 6), out, none, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, False)


# how the stand-in is found

def python(code, path=None):
    """Run `code` in a fresh interpreter that finds vitzoo, and modules under `path` before anything installed."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(path or ''), here])), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True)


def lite():
    """Whether the installed mmcv has no compiled operators and no start-up file (vitzoo.mm.enable) makes up for it."""
    return python('from importlib.util import find_spec; raise SystemExit(find_spec("mmcv._ext") is not None)').returncode == 0


def test_without_activation_the_error_is_the_one_of_mmcv():
    if not lite():
        pytest.skip('mmcv._ext can be imported here without vitzoo')
    result = python('import mmdet.apis')
    assert "ModuleNotFoundError: No module named 'mmcv._ext'" in result.stderr


def test_openmmlab_imports_after_activation():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    result = python('''
import sys
from vitzoo.mm.ops import activate, backend
first = activate(), backend()
assert first[0] == first[1] == activate() != 'none', first
assert sum(getattr(f, '__name__', '') == 'VitzooMmcvExtFinder' for f in sys.meta_path) <= 1
import mmdet.apis, mmseg.apis
from mmcv.utils import ext_loader
import importlib.util
assert importlib.util.find_spec('mmcv._ext') is sys.modules['mmcv._ext'].__spec__ is not None
print(backend())
''')
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == ('stand-in' if lite() else 'compiled')


# the module by its file: without the rest of vitzoo, hence torch, and so in a moment
OPS = '''
from importlib import util
spec = util.spec_from_file_location('ops', util.find_spec('vitzoo').submodule_search_locations[0] + '/mm/ops/__init__.py')
ops = util.module_from_spec(spec)
spec.loader.exec_module(ops)
import sys
'''


@pytest.mark.parametrize('before', ['', 'import mmcv._ext', 'sys.meta_path.append(ops.VitzooMmcvExtFinder)'],
                         ids=['found', 'imported', 'finder active'])
def test_a_compiled_extension_wins(tmp_path, before):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').touch()
    (tmp_path / 'mmcv' / '_ext.py').write_text('compiled = True\n')
    result = python(f'''{OPS}{before}
assert ops.activate() == ops.backend() == 'compiled'
import mmcv._ext
assert mmcv._ext.compiled and ops.backend() == 'compiled'
''', tmp_path)
    assert result.returncode == 0, result.stderr


def test_activation_imports_neither_mmcv_nor_torch_and_answers_for_one_name():
    result = python(f'''{OPS}
ops.activate()
assert not {{'mmcv', 'torch'}} & set(sys.modules)
assert ops.VitzooMmcvExtFinder.find_spec('mmcv._ext') is not None
assert ops.VitzooMmcvExtFinder.find_spec('mmcv._ext2') is None is ops.VitzooMmcvExtFinder.find_spec('mmcv')
''')
    assert result.returncode == 0, result.stderr
