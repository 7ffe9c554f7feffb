"""Stand-in for `mmcv._ext` on torch and torchvision; `vitzoo.mm.ops` says how it is found. Imports nothing else of vitzoo.

The functions have the names, arguments and conventions of the compiled module of mmcv 2.1.0, as its Python wrappers use them: most write
their result into tensors that the caller allocated and passes in. Nineteen operators serve MMDetection and MMSegmentation; any other name
gives a function that raises NotImplementedError.

Letters: K boxes or RoIs, N images, C channels, H, W map size, h, w pooled size. Boxes are (x1, y1, x2, y2); RoIs put the image number
in front. `offset` (0 or 1) is what a box side is longer than the difference of its coordinates.

float16 and bfloat16 are computed in float32, float64 stays. Where scores are equal, the box that came first in the input goes first.
Boxes without area overlap nothing.
"""
import math

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

BACKEND = 'stand-in'
_tv = torch.ops.torchvision


def __getattr__(name: str):
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def refuse(*args, **kwargs):
        raise NotImplementedError(
            f'mmcv operator {name!r} has no fallback in vitzoo; install mmcv 2.1.0 compiled with its operators in the place of mmcv-lite')

    return refuse


def _compute(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one dtype that every kernel has: float64 if any is, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.to(dtype) for t in tensors]


def get_compiler_version() -> str:
    return f'none (vitzoo on torch {torch.__version__}, torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    return 'not available'


# boxes

def _overlap(a: Tensor, b: Tensor, offset: int = 0, of_first: bool = False) -> Tensor:
    """Intersection of boxes (..., 4), broadcast, over their union or over the area of the first; 0 where that has no area."""
    def area(box):
        return (box[..., 2:] - box[..., :2] + offset).prod(-1)

    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset).clamp(min=0).prod(-1)
    base = area(a) if of_first else area(a) + area(b) - inter
    return torch.where(base > 0, inter / base, 0)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Fill `ious`, (M, N) or if aligned (M,), with IoU (mode 0) or intersection over the first box (mode 1)."""
    a, b = _compute(bboxes1, bboxes2)
    ious.copy_(_overlap(a if aligned else a[:, None], b, offset, of_first=mode == 1))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept, best first; one that overlaps a kept box by more than the threshold is dropped."""
    boxes, scores = _compute(boxes, scores)
    return _tv.nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int,
            offset: int) -> Tensor:
    """Soft-NMS on the CPU: indices of the K boxes kept, best first; `dets[:K]` gets them with their decayed scores.

    Each box taken lowers the scores of the rest: to 0 (method 0) or by 1 - IoU (1) from `iou_threshold` on, by exp(-IoU^2 / sigma) (2).
    What falls below `min_score` is dropped; the first box taken is not checked.
    """
    boxes, scores = _compute(boxes, scores)
    scores = scores.clone()
    rest = torch.arange(len(boxes))  # stays in ascending order, and argmax takes the first of equals
    kept = []
    while len(rest):
        best = rest[scores[rest].argmax()]
        kept.append(best)
        rest = rest[rest != best]
        iou = _overlap(boxes[best], boxes[rest], offset)
        if method == 2:
            scores[rest] *= torch.exp(-iou ** 2 / sigma)
        else:
            scores[rest] *= torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0, 1)
        rest = rest[scores[rest] >= min_score]
    kept = torch.stack(kept) if kept else rest
    dets[:len(kept)] = torch.cat([boxes[kept], scores[kept, None]], 1).to(dets.dtype)
    return kept


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes of `dets` (K, 5), each led by a kept box, followed by those that it suppresses, best first."""
    boxes, scores = _compute(dets[:, :4], dets[:, 4])
    rest = scores.argsort(descending=True, stable=True)
    groups = []
    while len(rest):
        match = _overlap(boxes[rest[0]], boxes[rest]) >= iou_threshold
        match[0] = True  # itself, also without area
        groups.append(rest[match].tolist())
        rest = rest[~match]
    return groups


# pooling of regions

def _refuse_max(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("RoIAlign with pool_mode='max' has no fallback in vitzoo; use pool_mode='avg' or install a compiled mmcv")


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
                      aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    """Fill `output` (K, C, h, w) with means over RoIs (K, 5) of `input` (N, C, H, W)."""
    _refuse_max(pool_mode)
    x, rois = _compute(input, rois)
    output.copy_(_tv.roi_align(x, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
                       aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool) -> None:
    _refuse_max(pool_mode)
    grad, rois = _compute(grad_output, rois)
    if sampling_ratio > 0 and grad.device.type == 'cpu':  # torchvision works out the weights of each sample anew for every channel
        pixels, weights = _samples_to_pixels(rois, grad.shape[2:], grad_input.shape, spatial_scale, sampling_ratio, aligned)
        pixels, order = pixels.flatten().sort()
        starts = torch.searchsorted(pixels, torch.arange(grad_input[:, 0].numel()))
        grad = F.embedding_bag(  # to each pixel the weighted sum of the bins that sampled it
            order // (4 * sampling_ratio ** 2), grad.permute(0, 2, 3, 1).flatten(0, 2), starts, mode='sum',
            per_sample_weights=weights.flatten()[order]).unflatten(0, grad_input[:, 0].shape).permute(0, 3, 1, 2)
    else:
        grad = _tv._roi_align_backward(grad, rois, spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned)
    grad_input.copy_(grad)


def _samples_to_pixels(rois: Tensor, bins: torch.Size, shape: torch.Size, scale: float, ratio: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """What RoIAlign adds up in each bin of RoIs (K, 5): pixels, counted through N, H, W, and their weights, (K, h, w, ratio, 2, ratio, 2).

    Mask R-CNN (https://arxiv.org/abs/1703.06870), section 3: a bin is the mean of ratio x ratio bilinear samples.
    """
    _, _, height, width = shape
    image, (x0, y0, x1, y1) = rois[:, 0].long(), (rois[:, 1:] * scale - 0.5 * aligned).unbind(1)
    smallest = -math.inf if aligned else 1
    ys, wy = _samples(y0, (y1 - y0).clamp(min=smallest), bins[0], ratio, height)  # (K, h, ratio, 2)
    xs, wx = _samples(x0, (x1 - x0).clamp(min=smallest), bins[1], ratio, width)  # (K, w, ratio, 2)
    ys = image[:, None, None, None] * height + ys
    return (ys[:, :, None, :, :, None, None] * width + xs[:, None, :, None, None],
            wy[:, :, None, :, :, None, None] * wx[:, None, :, None, None] / ratio ** 2)


def _samples(start: Tensor, length: Tensor, bins: int, ratio: int, size: int) -> tuple[Tensor, Tensor]:
    """Samples along one axis: places and weights (K, bins, ratio, 2) of the two pixels around each, 0 for those far outside, or nowhere."""
    steps = (torch.arange(bins * ratio, dtype=start.dtype) + 0.5) / (bins * ratio)
    at = start[:, None] + length[:, None] * steps
    inside = (at >= -1) & (at <= size)
    at = torch.where(inside, at, 0).clamp(0, size - 1)
    low = at.floor()
    weights = torch.stack([low + 1 - at, at - low], dim=-1) * inside[..., None]
    places = torch.stack([low, (low + 1).clamp(max=size - 1)], dim=-1).long()
    return places.unflatten(1, (bins, ratio)), weights.unflatten(1, (bins, ratio))


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int,
                     spatial_scale: float) -> None:
    """Fill `output` (K, C, h, w) with maxima over the bins of RoIs (K, 5), `argmax` with their place y * W + x, -1 in empty bins.

    mmcv and torchvision pool different regions: mmcv cuts the real interval [x1 * scale, (x2 + 1) * scale) into bins and takes every
    pixel that a bin touches, torchvision rounds the RoI to pixels first. So the bins are computed here, and each goes to torchvision
    as a RoI of its own, of whole pixels and with one cell.
    """
    x, rois = _compute(input, rois)
    size = rois.new_tensor([input.shape[3], input.shape[2]])
    cells = rois.new_tensor([pooled_width, pooled_height])
    start = rois[:, 1:3] * spatial_scale
    bin_size = ((rois[:, 3:] + 1) * spatial_scale - start) / cells
    i = torch.cartesian_prod(torch.arange(pooled_height, device=x.device), torch.arange(pooled_width, device=x.device)).flip(1)
    low = (i * bin_size[:, None] + start[:, None]).floor().clamp(min=0)  # (K, h * w, 2) of (x, y)
    high = torch.minimum(((i + 1) * bin_size[:, None] + start[:, None]).ceil(), size)
    filled = ((low < high) & (bin_size[:, None] > 0)).all(-1, keepdim=True)
    low = torch.where(filled, low, size)  # a RoI that begins outside of the image is empty to torchvision too
    bins = torch.cat([rois[:, None, :1].expand(-1, len(i), -1), low, high - 1], -1).flatten(0, 1)
    for out, pooled in zip((output, argmax), _tv.roi_pool(x, bins, 1.0, 1, 1), strict=True):
        out.copy_(pooled.view(len(rois), pooled_height, pooled_width, input.shape[1]).permute(0, 3, 1, 2))


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int,
                      spatial_scale: float) -> None:
    grad, rois = _compute(grad_output, rois)
    grad_input.copy_(_tv._roi_pool_backward(grad, rois, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape))


# focal loss

def _focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float):
    """Sign of each logit (K, C): 1 at the target class, -1 elsewhere; and the factor of its term of the loss.

    A target that is no class, such as C, is background: all its logits are negatives, and its class weight is 1.
    """
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    factor = torch.where(positive, input.new_tensor(alpha), 1 - alpha)
    if len(weight):
        factor = factor * torch.where(positive.any(1), weight[target.clamp(0, len(weight) - 1)], 1)[:, None]
    return torch.where(positive, 1, -1), factor


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    """Fill `output` (K, C) with -factor (1 - q)^gamma log q, q being the probability of the right answer (Lin et al. 2017, eq. 5)."""
    x, weight = _compute(input, weight)
    sign, factor = _focal_terms(x, target, weight, alpha)
    output.copy_(-factor * torch.sigmoid(-sign * x) ** gamma * F.logsigmoid(sign * x))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float) -> None:
    x, weight = _compute(input, weight)
    sign, factor = _focal_terms(x, target, weight, alpha)
    q, p = torch.sigmoid(sign * x), torch.sigmoid(-sign * x)
    grad_input.copy_(sign * factor * p ** gamma * (gamma * q * F.logsigmoid(sign * x) - p))


# multi-scale deformable attention

def _deformable_attention(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # itself a client of this module

    return multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)


def ms_deform_attn_forward(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
                           attention_weights: Tensor, im2col_step: int) -> Tensor:
    """(N, queries, heads * dims) from value (N, sum of H * W, heads, dims); the levels lie one after another, as `mmcv` has them."""
    inputs = _compute(value, sampling_locations, attention_weights)
    return _deformable_attention(inputs[0], spatial_shapes, *inputs[1:]).to(value.dtype)


def ms_deform_attn_backward(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
                            attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
                            grad_attn_weight: Tensor, im2col_step: int) -> None:
    grad, *inputs = _compute(grad_output, value, sampling_locations, attention_weights)
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in inputs]
        grads = torch.autograd.grad(_deformable_attention(inputs[0], spatial_shapes, *inputs[1:]), inputs, grad)
    for out, g in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        out.copy_(g)


# deformable convolution; offsets have y before x in both libraries. The compiled kernels use `columns`, `ones` and `im2col_step` as
# scratch space, torchvision's have their own.

def _dcn_inputs(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> list[Tensor]:
    """What torchvision takes: all five tensors, of one dtype; zeros stand for an absent mask or bias."""
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return _compute(input, weight, offset, mask, bias)


def _dcn_gradients(grad_output: Tensor, inputs: list[Tensor], stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
                   dilation_w: int, *options) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias.

    The two libraries differ in one place: of a sample that lies exactly one pixel above or left of the map, where the interpolation has
    a kink, mmcv takes the derivative outwards, 0, torchvision the one inwards. It matters, as offsets start at 0.
    """
    grads = _tv._deform_conv2d_backward(*_compute(grad_output, *inputs), stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, *options)
    (h, w), (H, W) = inputs[1].shape[2:], grad_output.shape[2:]
    offset, grad = (t.unflatten(1, (-1, h, w, 2)) for t in (inputs[2], grads[2]))  # (N, groups, h, w, 2, H, W)
    device = offset.device
    y = torch.arange(h, device=device)[:, None] * dilation_h + torch.arange(H, device=device) * stride_h - pad_h
    x = torch.arange(w, device=device)[:, None] * dilation_w + torch.arange(W, device=device) * stride_w - pad_w
    for axis, position in enumerate((y[:, None, :, None], x[:, None, :])):
        grad[:, :, :, :, axis].masked_fill_(offset[:, :, :, :, axis] + position == -1, 0)
    return grads


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, kW: int, kH: int,
                        dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int, group: int, deformable_group: int,
                        im2col_step: int) -> None:
    """Fill `output`; `d` is the stride, `k` the kernel size."""
    output.copy_(_tv.deform_conv2d(*_dcn_inputs(input, weight, offset), dH, dW, padH, padW, dilationH, dilationW, group,
                                   deformable_group, False))


def deform_conv_backward_input(input: Tensor, offset: Tensor, gradOutput: Tensor, gradInput: Tensor, gradOffset: Tensor, weight: Tensor,
                               columns: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
                               group: int, deformable_group: int, im2col_step: int) -> None:
    grads = _dcn_gradients(gradOutput, _dcn_inputs(input, weight, offset), dH, dW, padH, padW, dilationH, dilationW, group,
                           deformable_group, False)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, gradOutput: Tensor, gradWeight: Tensor, columns: Tensor, ones: Tensor,
                                    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int, group: int,
                                    deformable_group: int, scale: float, im2col_step: int) -> None:
    # this gradient does not depend on the weight, which the caller does not pass
    grads = _dcn_gradients(gradOutput, _dcn_inputs(input, torch.zeros_like(gradWeight), offset), dH, dW, padH, padW, dilationH,
                           dilationW, group, deformable_group, False)
    gradWeight.copy_(grads[1] * scale)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
                                  columns: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
                                  dilation_h: int, dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    output.copy_(_tv.deform_conv2d(*_dcn_inputs(input, weight, offset, mask, bias if with_bias else None), stride_h, stride_w, pad_h,
                                   pad_w, dilation_h, dilation_w, group, deformable_group, True))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
                                   columns: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor,
                                   grad_mask: Tensor, grad_output: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int,
                                   pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, group: int, deformable_group: int,
                                   with_bias: bool) -> None:
    grads = _dcn_gradients(grad_output, _dcn_inputs(input, weight, offset, mask), stride_h, stride_w, pad_h, pad_w, dilation_h,
                           dilation_w, group, deformable_group, True)
    outs = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)[:5 if with_bias else 4]
    for out, grad in zip(outs, grads, strict=False):
        out.copy_(grad)
