"""The modules that are exported, and the functions that make them of a model."""
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from vitzoo.facts import model_name

from .boxes import decode, paste, pool, suppress
from .refusals import check_detector, check_raw, check_segmentor


def segmentor(model: nn.Module, size: tuple[int, int], *, argmax: bool = False) -> nn.Module:
    """A segmentor of MMSegmentation as image (B, C, H, W) -> logits (B, K, H, W), or with `argmax` labels (B, H, W), int64.

    Args:
        model: an `EncoderDecoder` with heads that give logits (UPerNet, Semantic FPN, SegFormer, ...). `dataset_meta['classes']`, if it has
            that, names the classes.
        size: (H, W). A model that is tested on sliding windows takes one window at a time.

    Raises:
        ValueError: another kind of model; an image larger than the window; normalisation that is not that of an RGB image.
    """
    check_segmentor(model, size)
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
    from mmdet.models.detectors import TwoStageDetector
    check_detector(model)
    return (_TwoStage if isinstance(model, TwoStageDetector) else _OneStage)(model, size)


def raw(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A detector up to the maps of its dense head: image (B, C, H, W) -> list of (B, C, H, W), scores of all levels, then deltas.

    ValueError for a model without a `bbox_head` or `rpn_head` that takes maps.
    """
    check_raw(model)
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
                    setattr(parent, name, MatrixPool(child.output_size))

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model.encode_decode(image, [dict(img_shape=self.size)])  # of the whole batch
        if not self.argmax:
            return logits
        return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0].sigmoid() > self.model.decode_head.threshold).long()


class MatrixPool(nn.Module):
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
