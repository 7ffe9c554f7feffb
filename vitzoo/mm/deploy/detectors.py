"""Detectors whose dense head looks at anchors or points: of one stage, and with heads for the boxes that it proposes."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Deployed
from .boxes import decode, paste, pool, suppress


class _Dense(Deployed):
    """A model with a dense head, whose anchors or points are constants."""
    output_names = ('boxes', 'scores', 'labels')
    objects = True

    def __init__(self, model: nn.Module, size: Sequence[int], head: nn.Module):
        super().__init__(model, size)
        with torch.no_grad():
            image = self.blank()
            sizes = [m.shape[-2:] for m in head(self.maps(image))[0]]
        for i, priors in enumerate(head.prior_generator.grid_priors(sizes, device=image.device)):
            self.register_buffer(f'priors{i}', priors, persistent=False)

    def candidates(self, head: nn.Module, maps: Sequence[Tensor], limit: int,
                   threshold: float = -1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The best of each level: boxes (N, 4), scores (N,), labels (N,), levels (N,), and which are above the threshold.

        That is asked of the scores of the classes alone; where the head gives a factor for each place (centerness), they are multiplied by
        it afterwards.
        """
        found = []
        for level, (logits, deltas, *factors) in enumerate(zip(*head(maps), strict=True)):
            scores, deltas = (m[0].permute(1, 2, 0).reshape(-1, n) for m, n in ((logits, head.cls_out_channels), (deltas, 4)))
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(1)[:, :-1]
            classes = scores.shape[1]
            best, index = scores.flatten().topk(min(limit, scores.numel()))
            place, valid = index // classes, best > threshold
            for factor in factors:
                best = best * factor[0].permute(1, 2, 0).flatten().sigmoid()[place]
            boxes = decode(getattr(self, f'priors{level}')[place], deltas[place], head.bbox_coder, self.size)
            found.append((boxes, best, index % classes, torch.full_like(index, level), valid))
        return tuple(torch.cat(values) for values in zip(*found, strict=True))


class OneStage(_Dense):
    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size, model.bbox_head)
        cfg = model.bbox_head.test_cfg
        self.onnx_metadata |= dict(task='detection', num_classes=model.bbox_head.num_classes, score_threshold=cfg.get('score_thr', 0))

    def forward(self, image: Tensor) -> list[Tensor]:
        head = self.model.bbox_head
        cfg = head.test_cfg
        boxes, scores, labels, _, valid = self.candidates(head, self.maps(image), cfg.nms_pre, cfg.get('score_thr', 0))
        keep = suppress(boxes, scores, labels, cfg.nms, cfg.max_per_img, valid, cfg.get('min_bbox_size', -1))
        return [boxes[keep], scores[keep], labels[keep]]


class TwoStage(_Dense):
    """Box heads one after the other, each for the boxes that the one before it made; of Faster and Mask R-CNN there is one."""

    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size, model.rpn_head)
        head = model.roi_head
        classes = stages(head.bbox_head)[-1].num_classes
        self.onnx_metadata |= dict(task='detection', num_classes=classes, score_threshold=head.test_cfg.score_thr)
        if head.with_mask:
            self.output_names += 'masks',

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.maps(image)
        boxes, scores, labels = self.find(maps, self.propose(maps))
        found = [boxes, scores, labels]
        return [*found, self.masks(maps, boxes, labels)] if self.model.roi_head.with_mask else found

    def propose(self, maps: Sequence[Tensor]) -> Tensor:
        """Boxes (N, 4) where objects may be."""
        head, cfg = self.model.rpn_head, self.model.rpn_head.test_cfg
        boxes, scores, _, levels, _ = self.candidates(head, maps, cfg.nms_pre)
        return boxes[suppress(boxes, scores, levels, cfg.nms, cfg.max_per_img, min_size=cfg.get('min_bbox_size', -1))]

    def find(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Proposed boxes (N, 4) -> boxes (M, 4), scores (M,), labels (M,) of the objects, best first."""
        head, cfg = self.model.roi_head, self.model.roi_head.test_cfg
        *others, last = zip(stages(head.bbox_roi_extractor), stages(head.bbox_head), strict=True)
        total = 0
        for extractor, stage in others:
            logits, deltas = stage(pool(extractor, maps, boxes))
            total = total + logits
            best = logits[:, :-1].argmax(1)
            own = by_class(deltas, stage)[torch.arange(best.shape[0], device=best.device), best]
            boxes = decode(boxes, own, stage.bbox_coder, self.size)
        extractor, stage = last
        logits, deltas = stage(pool(extractor, maps, boxes))
        logits = (total + logits) / (len(others) + 1)
        classes = stage.num_classes
        scores = logits.softmax(1)[:, :classes].flatten()
        boxes = decode(boxes[:, None].expand(-1, classes, -1).reshape(-1, 4), by_class(deltas, stage).reshape(-1, 4), stage.bbox_coder,
                       self.size)
        labels = torch.arange(classes, device=boxes.device).expand(logits.shape[0], -1).flatten()
        keep = suppress(boxes, scores, labels, cfg.nms, cfg.max_per_img, scores > cfg.score_thr)
        return boxes[keep], scores[keep], labels[keep]

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Of objects (N, H, W), bool: the mean of what the stages say."""
        head = self.model.roi_head
        extractors, heads = stages(head.mask_roi_extractor), stages(head.mask_head)
        windows, found = {}, 0
        for extractor, mask in zip(extractors, heads, strict=True):
            settings = str(extractor.roi_layers), extractor.finest_scale
            if settings not in windows:  # all stages look at the same boxes
                windows[settings] = pool(extractor, maps, boxes)
            found = found + mask(windows[settings]).sigmoid()
        found = found / len(heads)
        if heads[-1].class_agnostic:
            found = found[:, 0]
        else:
            found = found.flatten(0, 1)[torch.arange(labels.shape[0], device=labels.device) * found.shape[1] + labels]
        return paste(found, boxes, self.size) >= head.test_cfg.mask_thr_binary


def stages(part: nn.Module) -> list[nn.Module]:
    """The heads of a cascade, or the only one."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def by_class(deltas: Tensor, head: nn.Module) -> Tensor:
    """What a box head gives for N boxes as (N, K, 4), also where it is the same for every class."""
    return deltas.reshape(deltas.shape[0], -1, 4).expand(-1, head.num_classes, -1)
