"""From maps to boxes and masks, in operators that an ONNX file has: functions of tensors of a single image."""
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, nms, roi_align


def decode(priors: Tensor, deltas: Tensor, coder: nn.Module, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4), cut off at the border: anchors (N, 4), moved and stretched by deltas (N, 4) (https://arxiv.org/abs/1311.2524), or
    around points (N, 2), by distances (N, 4) to the left, top, right and bottom (https://arxiv.org/abs/1904.01355)."""
    boxes = _around(priors, deltas) if priors.shape[1] == 2 else _moved(priors, deltas, coder)
    return clip(boxes, size) if coder.clip_border else boxes


def _around(points: Tensor, distances: Tensor) -> Tensor:
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], 1)


def _moved(anchors: Tensor, deltas: Tensor, coder: nn.Module) -> Tensor:
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    centre, length = (anchors[:, :2] + anchors[:, 2:]) * 0.5, anchors[:, 2:] - anchors[:, :2]
    limit = abs(math.log(16 / 1000))
    centre, length = centre + length * deltas[:, :2], length * deltas[:, 2:].clamp(-limit, limit).exp()
    return torch.cat([centre - length * 0.5, centre + length * 0.5], 1)


def corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) given by their middles and lengths as shares of the image -> in pixels, cut off at the border."""
    height, width = size
    return clip(box_convert(boxes, 'cxcywh', 'xyxy') * boxes.new_tensor([width, height, width, height]), size)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) cut off at the border."""
    height, width = size
    return torch.stack([boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width),
                        boxes[:, 3].clamp(0, height)], 1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: dict, limit: int, valid: Tensor | None = None,
             min_size: float = -1) -> Tensor:
    """Indices of the best boxes, best first: NMS in each group, of those that are valid and above the size."""
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    if min_size >= 0:
        valid = valid & (boxes[:, 2:] - boxes[:, :2] > min_size).all(1)
    if not cfg.get('class_agnostic', False):
        # groups are moved apart; by how much is rounding, and so as MMDetection does it
        boxes = boxes + (groups.to(boxes) * (torch.where(valid[:, None], boxes, 0).max() + 1))[:, None]
    index = valid.nonzero()[:, 0]
    return index[nms(boxes[index], scores[index], cfg['iou_threshold'])][:limit]


def pool(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Windows (N, C, S, S) of the maps at boxes (N, 4), each from the level that suits its size (https://arxiv.org/abs/1612.03144)."""
    layers = extractor.roi_layers
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = (scale / extractor.finest_scale + 1e-6).log2().floor().clamp(0, len(layers) - 1)
    found = 0
    for i, layer in enumerate(layers):
        here = levels == i
        # boxes of other levels shrink to nothing, which costs next to nothing; selecting would make lengths that depend on the image
        windows = roi_align(maps[i], rois * here[:, None], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        found = found + windows * here[:, None, None, None]
    return found


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, S, S) of boxes (N, 4), bilinearly enlarged into images (N, H, W) that are 0 outside.

    Interpolation is a product with a matrix for the rows and one for the columns.
    """
    def weights(low: Tensor, high: Tensor, cells: int, length: int) -> Tensor:
        """(N, length, cells): how much of each cell is in each pixel."""
        pixels = torch.arange(length, device=boxes.device) + 0.5
        at = (pixels - low[:, None]) / (high - low).clamp(min=1e-6)[:, None] * cells - 0.5
        return (1 - (at[..., None] - torch.arange(cells, device=boxes.device)).abs()).clamp(min=0)

    (height, width), (rows, columns) = size, masks.shape[1:]
    left, top, right, bottom = boxes.unbind(1)
    return weights(top, bottom, rows, height) @ masks @ weights(left, right, columns, width).transpose(1, 2)
