"""What cannot be exported, and why: each check is passed in silence or ends in a ValueError that says what was expected."""
from collections.abc import Sequence

from torch import nn

from .detectors import stages


def check_segmentor(model: nn.Module, size: Sequence[int]) -> None:
    """An `EncoderDecoder` of MMSegmentation whose head gives logits, and for sliding windows a size that is no larger than one."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder
    head = getattr(model, 'decode_head', None)
    if not isinstance(model, EncoderDecoder) or not isinstance(head, BaseDecodeHead) or not _inherits(head, BaseDecodeHead, 'predict'):
        raise ValueError(f'{_kind(model, "decode_head")} cannot be exported as a segmentor: expected an EncoderDecoder of MMSegmentation '
                         'whose head gives logits. vitzoo.DenseBackbone is exported alone')
    window = model.test_cfg.get('crop_size') if model.test_cfg.get('mode') == 'slide' else None
    if window and any(length > limit for length, limit in zip(size, window, strict=True)):
        raise ValueError(f'size={tuple(size)}: the model is tested on sliding windows of {tuple(window)}, and a file is one of them. '
                         "Export it at that size and average the logits where windows overlap, or set model.test_cfg.mode = 'whole'")


def check_detector(model: nn.Module) -> None:
    """One stage with anchors or points, one or more stages of boxes after another, or a transformer, all of MMDetection, and with what
    `boxes` computes."""
    from mmdet.models.detectors import DINO, DeformableDETR, SingleStageDetector, TwoStageDetector
    if type(model) in (DeformableDETR, DINO):
        _check_transformer_head(model, model.bbox_head)
    elif isinstance(model, SingleStageDetector) and _inherits(model, SingleStageDetector, 'predict'):
        _check_dense_head(model, model.bbox_head)
    elif isinstance(model, TwoStageDetector) and _inherits(model, TwoStageDetector, 'predict'):
        _check_dense_head(model, model.rpn_head)
        _check_roi_head(model, model.roi_head)
    else:
        raise ValueError(_refusal(_kind(model, 'bbox_head')))
    for part in model.modules():
        if 'DeformConv' in type(part).__name__:
            raise ValueError(_refusal(f'{type(model).__name__} with {type(part).__name__}'))


def check_raw(model: nn.Module) -> None:
    """A `bbox_head` or `rpn_head` that takes maps."""
    from mmdet.models.detectors import DetectionTransformer
    if not any(hasattr(getattr(model, name, None), 'forward') for name in ('bbox_head', 'rpn_head')):
        raise ValueError(f'{_kind(model, "bbox_head")} has no bbox_head or rpn_head: expected a detector of MMDetection')
    if isinstance(model, DetectionTransformer):
        raise ValueError(f'{_kind(model, "bbox_head")} asks a transformer and not the maps: expected a detector with a dense head')


def _check_dense_head(model: nn.Module, head: nn.Module) -> None:
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    base = RPNHead if isinstance(head, RPNHead) else BaseDenseHead
    if not isinstance(head, base) or not all(
            _inherits(head, base, name) for name in ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')):
        raise ValueError(_refusal(f'{type(model).__name__} with {type(head).__name__}'))
    _check_coder(model, head)
    _check_activation(model, head)
    if head.test_cfg.get('nms_pre', -1) <= 0:
        raise ValueError(f'test_cfg.nms_pre={head.test_cfg.get("nms_pre")}: expected the number of candidates of a level')
    _check_nms(model, head.test_cfg.get('nms'))


def _check_roi_head(model: nn.Module, head: nn.Module) -> None:
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    if type(head) not in (StandardRoIHead, CascadeRoIHead):
        raise ValueError(_refusal(f'{type(model).__name__} with {type(head).__name__}'))
    kinds = [(head.bbox_roi_extractor, SingleRoIExtractor, 'forward'), (head.bbox_head, BBoxHead, '_predict_by_feat_single'),
             (head.bbox_head, BBoxHead, 'regress_by_class')]
    if head.with_mask:
        kinds += [(head.mask_roi_extractor, SingleRoIExtractor, 'forward'), (head.mask_head, FCNMaskHead, '_predict_by_feat_single')]
    for parts, kind, method in kinds:
        for part in stages(parts):
            if not isinstance(part, kind) or not _inherits(part, kind, method):
                raise ValueError(_refusal(f'{type(model).__name__} with {type(part).__name__}'))
    for part in stages(head.bbox_head):
        _check_coder(model, part)
        _check_activation(model, part)
    _check_nms(model, head.test_cfg.nms)


def _check_transformer_head(model: nn.Module, head: nn.Module) -> None:
    from mmdet.models.dense_heads import DeformableDETRHead, DINOHead
    if type(head) not in (DeformableDETRHead, DINOHead):
        raise ValueError(_refusal(f'{type(model).__name__} with {type(head).__name__}'))
    if not head.loss_cls.use_sigmoid:
        raise ValueError(_refusal(f'{type(model).__name__} with classes told apart by a softmax'))


def _check_coder(model: nn.Module, head: nn.Module) -> None:
    """Boxes at anchors or proposals by deltas, or at points by distances."""
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder, DistancePointBBoxCoder, MlvlPointGenerator
    coder, points = head.bbox_coder, isinstance(getattr(head, 'prior_generator', None), MlvlPointGenerator)
    if type(coder) is not (DistancePointBBoxCoder if points else DeltaXYWHBBoxCoder) or getattr(coder, 'add_ctr_clamp', False):
        raise ValueError(_refusal(f'{type(model).__name__} with {type(coder).__name__}'))


def _check_activation(model: nn.Module, head: nn.Module) -> None:
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        raise ValueError(_refusal(f'{type(model).__name__} with {type(head.loss_cls).__name__}'))


def _check_nms(model: nn.Module, cfg: dict | None) -> None:
    if not cfg or cfg.get('type', 'nms') != 'nms' or not set(cfg) <= {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}:
        raise ValueError(_refusal(f'{type(model).__name__} with test_cfg.nms={cfg}'))


def _inherits(part: nn.Module, base: type, method: str) -> bool:
    return getattr(type(part), method) is getattr(base, method)


def _kind(model: nn.Module, head: str) -> str:
    part = getattr(model, head, None)
    return type(model).__name__ + ('' if part is None else f' with {type(part).__name__}')


def _refusal(what: str) -> str:
    return (f'{what} cannot be exported as a whole: expected one stage with anchors or points (RetinaNet, ATSS, FCOS) or Faster, '
            'Mask or Cascade R-CNN, with plain NMS, or Deformable DETR or DINO. vitzoo.mm.deploy.raw exports the maps of a dense head, '
            'before boxes are made of them')
