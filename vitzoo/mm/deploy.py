"""Whole detectors and segmentors as modules that `vitzoo.export_onnx` takes: a normalised image in, boxes or a label map out.

    model = mmdet.apis.init_detector(config, checkpoint, device='cpu')
    vitzoo.export_onnx(vitzoo.mm.deploy.detector(model, (800, 1344)), 'detector.onnx', (800, 1344), dynamic_batch=False)

The modules give what the model's own `predict` gives for an image of this size (rescale=False). They are copies in inference form.
"""
import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from vitzoo.facts import model_name

__all__ = ['detector', 'raw', 'segmentor']


def segmentor(model: nn.Module, size: tuple[int, int], *, argmax: bool = False) -> nn.Module:
    """A segmentor of MMSegmentation as image (B, C, H, W) -> logits (B, K, H, W), or with `argmax` labels (B, H, W), int64.

    Args:
        model: an `EncoderDecoder` with heads that give logits (UPerNet, Semantic FPN, SegFormer, ...). `dataset_meta['classes']`, if it has
            that, names the classes.
        size: (H, W). A model that is tested on sliding windows takes one window at a time.

    Raises:
        ValueError: another kind of model; an image larger than the window; normalisation that is not that of an RGB image.
    """
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder
    head = getattr(model, 'decode_head', None)
    if not isinstance(model, EncoderDecoder) or not isinstance(head, BaseDecodeHead) or not _inherits(head, BaseDecodeHead, 'predict'):
        raise ValueError(f'{_kind(model, "decode_head")} cannot be exported as a segmentor: expected an EncoderDecoder of MMSegmentation '
                         'whose head gives logits. vitzoo.DenseBackbone is exported alone')
    window = model.test_cfg.get('crop_size') if model.test_cfg.get('mode') == 'slide' else None
    if window and any(length > limit for length, limit in zip(size, window, strict=True)):
        raise ValueError(f'size={tuple(size)}: the model is tested on windows of {tuple(window)}; export it at that size')
    return _Segmentor(model, size, argmax)


def detector(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A detector of MMDetection as one image (1, C, H, W) -> boxes (N, 4), scores (N,), labels (N,) and, from Mask R-CNN, masks (N, H, W).

    Best first; boxes are left, top, right, bottom in pixels, labels int64, masks bool. N is what the thresholds and limits of the
    model's `test_cfg` leave, and may be 0.

    Args:
        model: one stage with anchors and without further scores (RetinaNet), or Faster or Mask R-CNN. `dataset_meta['classes']`, if it
            has that, names the classes.
        size: (H, W); made up inside to what the model wants.

    Raises:
        ValueError: another kind of model, or a way of suppressing overlaps other than plain NMS; `raw` exports the maps of those.
    """
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
    if isinstance(model, SingleStageDetector):
        _check_anchor_head(model, model.bbox_head)
        return _OneStage(model, size)
    if isinstance(model, TwoStageDetector):
        _check_anchor_head(model, model.rpn_head)
        _check_roi_head(model, model.roi_head)
        return _TwoStage(model, size)
    raise ValueError(_refusal(model, _kind(model, 'bbox_head')))


def raw(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A detector up to the maps of its dense head: image (B, C, H, W) -> list of (B, C, H, W), scores of all levels, then deltas.

    ValueError for a model without a `bbox_head` or `rpn_head` that takes maps.
    """
    if not any(hasattr(getattr(model, name, None), 'forward') for name in ('bbox_head', 'rpn_head')):
        raise ValueError(f'{_kind(model, "bbox_head")} has no bbox_head or rpn_head: expected a detector of MMDetection')
    return _Raw(model, size)


class _Deployed(nn.Module):
    """A copy of a model for images of one size.

    `output_names` and `onnx_metadata` are what `vitzoo.export_onnx` writes into the file.
    """
    exportable_dynamic_size = 'it is made for one size'
    output_names: tuple[str, ...] | None = None

    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__()
        if len(size) != 2 or not all(isinstance(length, int) and length > 0 for length in size):
            raise ValueError(f'size={size!r}: expected (height, width) in pixels')
        self.size = tuple(size)
        preprocessor = model.data_preprocessor
        mean, std = (getattr(preprocessor, name, torch.zeros(0)).flatten().tolist() for name in ('mean', 'std'))
        if not mean:
            raise ValueError('the data_preprocessor of the model has no mean and std, which an ONNX file has to state')
        # MMEngine and MMSegmentation call it differently
        if len(mean) == 3 and not getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False)):
            raise ValueError('the model takes BGR images: expected data_preprocessor=dict(bgr_to_rgb=True, ...)')
        # in a detector, images are padded after normalisation
        self.divisor, self.pad_value = getattr(preprocessor, 'pad_size_divisor', 1), float(getattr(preprocessor, 'pad_value', 0))
        classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
        self.onnx_metadata = dict(
            model=f'{type(model).__name__} on {model_name(model)}', mean=[v / 255 for v in mean], std=[v / 255 for v in std],
            interpolation='bilinear', crop_pct=1.0, class_names=None if classes is None else [str(name) for name in classes])
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def maps(self, image: Tensor) -> Sequence[Tensor]:
        """Image (B, C, H, W) -> the maps that the heads take."""
        height, width = self.size
        if image.shape[-2:] != self.size:
            raise ValueError(f'made for images of {height}x{width}, got {image.shape[-2]}x{image.shape[-1]}')
        return self.model.extract_feat(F.pad(image, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value))


class _Segmentor(_Deployed):
    output_names = ('seg',)

    def __init__(self, model: nn.Module, size: Sequence[int], argmax: bool):
        super().__init__(model, size)
        self.argmax = argmax
        self.onnx_metadata |= dict(
            task='segmentation', num_classes=model.num_classes, score_threshold=model.decode_head.threshold)
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, _MatrixPool(child.output_size))

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model.encode_decode(image, [dict(img_shape=self.size)])  # of the whole batch
        if not self.argmax:
            return logits
        return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0].sigmoid() > self.model.decode_head.threshold).long()


class _MatrixPool(nn.Module):
    """Adaptive average pooling as a product with a matrix for the rows and one for the columns: any sizes, in every opset."""

    def __init__(self, output_size: int | tuple[int, int]):
        super().__init__()
        self.output_size = to_2tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (x.new_tensor(self.shares(int(length), bins))
                         for length, bins in zip(x.shape[2:], self.output_size, strict=True))
        return rows @ x @ columns.T

    @staticmethod
    def shares(length: int, bins: int) -> list[list[float]]:
        """(bins, length): every bin reaches from the cell where it begins through the one where it ends."""
        spans = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
        return [[(first <= j < last) / (last - first) for j in range(length)] for first, last in spans]


class _Raw(_Deployed):
    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size)
        self.onnx_metadata['class_names'] = None  # no output has one entry a class

    def forward(self, image: Tensor) -> list[Tensor]:
        head = self.model.rpn_head if getattr(self.model, 'rpn_head', None) is not None else self.model.bbox_head
        return [m for maps in head(self.maps(image)) for m in maps]


class _Detector(_Deployed):
    output_names = ('boxes', 'scores', 'labels')
    objects = True

    def __init__(self, model: nn.Module, size: Sequence[int], head: nn.Module):
        super().__init__(model, size)
        with torch.no_grad():
            device = next(model.parameters()).device
            maps = self.maps(torch.zeros(1, len(self.onnx_metadata['mean']), *self.size, device=device))
            sizes = [m.shape[-2:] for m in head(maps)[0]]
        for i, anchors in enumerate(head.prior_generator.grid_priors(sizes, device=device)):
            self.register_buffer(f'anchors{i}', anchors, persistent=False)

    def candidates(self, head: nn.Module, maps: Sequence[Tensor], limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best of each level of a head with anchors: boxes (N, 4), scores (N,), labels (N,), levels (N,)."""
        found = []
        for level, (logits, deltas) in enumerate(zip(*head(maps), strict=True)):
            scores, deltas = (m[0].permute(1, 2, 0).reshape(-1, n) for m, n in ((logits, head.cls_out_channels), (deltas, 4)))
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(1)[:, :-1]
            classes = scores.shape[1]
            best, index = scores.flatten().topk(min(limit, scores.numel()))
            place = index // classes
            boxes = decode(getattr(self, f'anchors{level}')[place], deltas[place], head.bbox_coder, self.size)
            found.append((boxes, best, index % classes, torch.full_like(index, level)))
        return tuple(torch.cat(values) for values in zip(*found, strict=True))


class _OneStage(_Detector):
    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size, model.bbox_head)
        cfg = model.bbox_head.test_cfg
        self.onnx_metadata |= dict(task='detection', num_classes=model.bbox_head.num_classes, score_threshold=cfg.get('score_thr', 0))

    def forward(self, image: Tensor) -> list[Tensor]:
        head = self.model.bbox_head
        cfg = head.test_cfg
        boxes, scores, labels, _ = self.candidates(head, self.maps(image), cfg.nms_pre)
        keep = suppress(boxes, scores, labels, cfg.nms, cfg.max_per_img, cfg.get('score_thr', 0), cfg.get('min_bbox_size', -1))
        return [boxes[keep], scores[keep], labels[keep]]


class _TwoStage(_Detector):
    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size, model.rpn_head)
        head = model.roi_head
        self.onnx_metadata |= dict(task='detection', num_classes=head.bbox_head.num_classes, score_threshold=head.test_cfg.score_thr)
        if head.with_mask:
            self.output_names += 'masks',

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.maps(image)
        head, cfg = self.model.rpn_head, self.model.rpn_head.test_cfg
        boxes, scores, _, levels = self.candidates(head, maps, cfg.nms_pre)
        boxes = boxes[suppress(boxes, scores, levels, cfg.nms, cfg.max_per_img, min_size=cfg.get('min_bbox_size', -1))]

        head, cfg = self.model.roi_head, self.model.roi_head.test_cfg
        logits, deltas = head.bbox_head(pool(head.bbox_roi_extractor, maps, boxes))
        classes = head.bbox_head.num_classes
        scores = logits.softmax(1)[:, :classes].flatten()
        deltas = deltas.reshape(-1, 1 if head.bbox_head.reg_class_agnostic else classes, 4).expand(-1, classes, -1).reshape(-1, 4)
        boxes = decode(boxes[:, None].expand(-1, classes, -1).reshape(-1, 4), deltas, head.bbox_head.bbox_coder, self.size)
        labels = torch.arange(classes, device=image.device).expand(logits.shape[0], -1).flatten()
        keep = suppress(boxes, scores, labels, cfg.nms, cfg.max_per_img, cfg.score_thr)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        if not head.with_mask:
            return [boxes, scores, labels]
        masks = head.mask_head(pool(head.mask_roi_extractor, maps, boxes)).sigmoid()
        if head.mask_head.class_agnostic:
            masks = masks[:, 0]
        else:
            masks = masks.flatten(0, 1)[torch.arange(labels.shape[0], device=image.device) * classes + labels]
        return [boxes, scores, labels, paste(masks, boxes, self.size) >= cfg.mask_thr_binary]


def decode(anchors: Tensor, deltas: Tensor, coder: nn.Module, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) at anchors (N, 4), moved and stretched by deltas (N, 4) and cut off at the border (https://arxiv.org/abs/1311.2524)."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    centre, length = (anchors[:, :2] + anchors[:, 2:]) * 0.5, anchors[:, 2:] - anchors[:, :2]
    limit = abs(math.log(16 / 1000))
    centre, length = centre + length * deltas[:, :2], length * deltas[:, 2:].clamp(-limit, limit).exp()
    boxes = torch.cat([centre - length * 0.5, centre + length * 0.5], 1)
    if not coder.clip_border:
        return boxes
    height, width = size
    return torch.stack([boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width),
                        boxes[:, 3].clamp(0, height)], 1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: dict, limit: int, threshold: float | None = None,
             min_size: float = -1) -> Tensor:
    """Indices of the best boxes, best first: NMS in each group, of those above the threshold and the size."""
    valid = torch.ones_like(scores, dtype=torch.bool) if threshold is None else scores > threshold
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


def _check_anchor_head(model: nn.Module, head: nn.Module) -> None:
    from mmdet.models.dense_heads import AnchorHead, RPNHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    base = RPNHead if isinstance(head, RPNHead) else BaseDenseHead
    if not isinstance(head, AnchorHead) or hasattr(head, 'loss_centerness') or not all(
            _inherits(head, base, name) for name in ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')):
        raise ValueError(_refusal(model, f'{type(model).__name__} with {type(head).__name__}'))
    _check_coder(model, head)
    if head.test_cfg.get('nms_pre', -1) <= 0:
        raise ValueError(f'test_cfg.nms_pre={head.test_cfg.get("nms_pre")}: expected the number of candidates of a level')
    _check_nms(model, head.test_cfg.get('nms'))


def _check_roi_head(model: nn.Module, head: nn.Module) -> None:
    from mmdet.models.roi_heads import StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    kinds = [(head.bbox_roi_extractor, SingleRoIExtractor, 'forward')] if type(head) is StandardRoIHead else [(head, type(None), '')]
    if type(head) is StandardRoIHead:
        kinds.append((head.bbox_head, BBoxHead, '_predict_by_feat_single'))
        if head.with_mask:
            kinds += [(head.mask_roi_extractor, SingleRoIExtractor, 'forward'), (head.mask_head, FCNMaskHead, '_predict_by_feat_single')]
    for part, kind, method in kinds:
        if not isinstance(part, kind) or not _inherits(part, kind, method):
            raise ValueError(_refusal(model, f'{type(model).__name__} with {type(part).__name__}'))
    _check_coder(model, head.bbox_head)
    if head.bbox_head.custom_cls_channels:
        raise ValueError(_refusal(model, f'{type(model).__name__} with {type(head.bbox_head.loss_cls).__name__}'))
    _check_nms(model, head.test_cfg.nms)


def _check_coder(model: nn.Module, head: nn.Module) -> None:
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
    if type(head.bbox_coder) is not DeltaXYWHBBoxCoder or head.bbox_coder.add_ctr_clamp:
        raise ValueError(_refusal(model, f'{type(model).__name__} with {type(head.bbox_coder).__name__}'))


def _check_nms(model: nn.Module, cfg: dict | None) -> None:
    if not cfg or cfg.get('type', 'nms') != 'nms' or not set(cfg) <= {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}:
        raise ValueError(_refusal(model, f'{type(model).__name__} with test_cfg.nms={cfg}'))


def _inherits(part: nn.Module, base: type, method: str) -> bool:
    return getattr(type(part), method) is getattr(base, method)


def _kind(model: nn.Module, head: str) -> str:
    part = getattr(model, head, None)
    return type(model).__name__ + ('' if part is None else f' with {type(part).__name__}')


def _refusal(model: nn.Module, what: str) -> str:
    return (f'{what} cannot be exported as a whole: expected one stage with anchors (RetinaNet), or Faster or Mask R-CNN, with plain NMS. '
            'vitzoo.mm.deploy.raw exports the maps of its dense head, before boxes are made of them')
