"""The modules that are exported, and the functions that make them of a model."""
from collections.abc import Sequence

from timm.layers import to_2tuple
from torch import Tensor, nn

from .base import Deployed
from .detectors import OneStage, TwoStage
from .refusals import check_detector, check_raw, check_segmentor
from .transformer import Transformer


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
        model: one stage with anchors or points (RetinaNet, ATSS, FCOS); Faster, Mask or Cascade R-CNN; Deformable DETR or DINO.
            `dataset_meta['classes']`, if it has that, names the classes.
        size: (H, W); made up inside to what the model wants.

    Raises:
        ValueError: another kind of model, or a way of suppressing overlaps other than plain NMS; `raw` exports the maps of those.
    """
    from mmdet.models.detectors import DeformableDETR, TwoStageDetector
    check_detector(model)
    kinds = (TwoStageDetector, TwoStage), (DeformableDETR, Transformer), (object, OneStage)
    return next(made for kind, made in kinds if isinstance(model, kind))(model, size)


def raw(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A detector up to the maps of its dense head: image (B, C, H, W) -> list of (B, C, H, W), scores of all levels, deltas, centerness.

    ValueError for a model without a `bbox_head` or `rpn_head` that takes maps.
    """
    check_raw(model)
    return _Raw(model, size)


class _Segmentor(Deployed):
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


class _Raw(Deployed):
    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size)
        self.onnx_metadata['class_names'] = None  # no output has one entry a class

    def forward(self, image: Tensor) -> list[Tensor]:
        head = self.model.rpn_head if getattr(self.model, 'rpn_head', None) is not None else self.model.bbox_head
        return [m for maps in head(self.maps(image)) for m in maps]
