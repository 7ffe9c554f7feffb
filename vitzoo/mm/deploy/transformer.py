"""Detectors that ask a transformer with deformable attention: Deformable DETR and DINO (https://arxiv.org/abs/2010.04159, 2203.03605).

What depends on the size of the image alone (positions, padding, where the encoder looks) is a constant, and of the decoder only what the
last layer says is computed.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Deployed
from .boxes import corners


class Transformer(Deployed):
    output_names = ('boxes', 'scores', 'labels')
    objects = True

    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__(model, size)
        from mmcv.ops import MultiScaleDeformableAttention
        from mmdet.structures import DetDataSample
        model, head = self.model, self.model.bbox_head
        self.onnx_metadata |= dict(task='detection', num_classes=head.num_classes, score_threshold=0)
        self.dino = hasattr(model.decoder, 'ref_point_head')
        self.selects = model.as_two_stage  # which places become queries, and in which order
        self.limit = head.test_cfg.get('max_per_img', model.num_queries)
        with torch.no_grad():
            image = self.blank()
            sample = DetDataSample(metainfo=dict(img_shape=self.size, batch_input_shape=self.pad(image).shape[2:]))
            known, _ = model.pre_transformer(self.maps(image), [sample])
            shapes, ratios = known['spatial_shapes'], known['valid_ratios']
            constants = dict(
                positions=known['feat_pos'], padding=known['feat_mask'], ratios=ratios.repeat(1, 1, 2)[:, None],
                places=model.encoder.get_encoder_reference_points(shapes, ratios, image.device), proposals=None, inside=None)
            if model.as_two_stage:
                _, constants['proposals'] = model.gen_encoder_output_proposals(
                    torch.zeros_like(known['feat']), known['feat_mask'], shapes)
                constants['inside'] = constants['proposals'].isfinite().all(2, keepdim=True)
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, MultiScaleDeformableAttention):
                    setattr(parent, name, DeformableAttention(child, shapes))

    def forward(self, image: Tensor) -> list[Tensor]:
        from mmdet.models.layers import coordinate_to_encoding
        decoder, head = self.model.decoder, self.model.bbox_head
        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in self.maps(image)], 1)
        for layer in self.model.encoder.layers:
            memory = layer(memory, query_pos=self.positions, key_padding_mask=self.padding, reference_points=self.places)

        query, query_pos, references = self.queries(memory)
        last = len(decoder.layers) - 1
        for i, layer in enumerate(decoder.layers):
            places = references[:, :, None] * self.ratios[..., :references.shape[-1]]
            if self.dino:
                query_pos = decoder.ref_point_head(coordinate_to_encoding(places[:, :, 0]))
            query = layer(query, query_pos=query_pos, value=memory, key_padding_mask=self.padding, reference_points=places)
            if self.model.with_box_refine and i < last:
                references = refine(references, head.reg_branches[i](query), 1e-3 if self.dino else 1e-5)
        if self.dino:
            query = decoder.norm(query)

        scores, index = head.cls_branches[last](query).sigmoid().flatten().topk(self.limit)
        boxes = refine(references, head.reg_branches[last](query))[0, index // head.num_classes]
        return [corners(boxes, self.size), scores, index % head.num_classes]

    def queries(self, memory: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of the decoder: contents (1, Q, C), positions (1, Q, C) or None where they follow from the references, which are points or boxes
        (1, Q, 2 or 4) as shares of the image."""
        model, head = self.model, self.model.bbox_head
        if not model.as_two_stage:
            query_pos, query = model.query_embedding.weight[None].chunk(2, 2)
            return query, query_pos, model.reference_points_fc(query_pos).sigmoid()
        extra = len(model.decoder.layers)  # the branch for the encoder
        memory = model.memory_trans_norm(model.memory_trans_fc(torch.where(self.inside, memory, 0)))
        scores = head.cls_branches[extra](memory)
        _, best = (scores.amax(2) if self.dino else scores[..., 0])[0].topk(model.num_queries)
        boxes = head.reg_branches[extra](memory[:, best]) + self.proposals[:, best]
        if self.dino:
            return model.query_embedding.weight[None], None, boxes.sigmoid()
        query_pos, query = model.pos_trans_norm(model.pos_trans_fc(model.get_proposal_pos_embed(boxes))).chunk(2, 2)
        return query, query_pos, boxes.sigmoid()


def refine(references: Tensor, deltas: Tensor, eps: float = 1e-5) -> Tensor:
    """Points or boxes (1, Q, 2 or 4), moved and stretched by deltas (1, Q, 4) before the sigmoid that makes them shares of the image."""
    from mmdet.models.layers import inverse_sigmoid
    return (F.pad(inverse_sigmoid(references, eps), (0, 4 - references.shape[-1])) + deltas).sigmoid()


class DeformableAttention(nn.Module):
    """MMCV's multi-scale deformable attention for maps of fixed sizes: a few samples of each of them, weighed."""

    def __init__(self, attention: nn.Module, shapes: Tensor):
        super().__init__()
        self.inner, self.shapes = attention, shapes.tolist()
        self.register_buffer('lengths', shapes.float().flip(1), persistent=False)  # (levels, 2), width first

    def forward(self, query: Tensor, value: Tensor, query_pos: Tensor, reference_points: Tensor,
                key_padding_mask: Tensor | None = None, **unused) -> Tensor:
        """Queries (B, Q, C), values (B, N, C) of all maps, where to look (B, Q, levels, 2 or 4) -> (B, Q, C), with the queries added."""
        inner, identity = self.inner, query
        heads, points, levels = inner.num_heads, inner.num_points, len(self.shapes)
        query = query + query_pos
        value = inner.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        batch, number, _ = query.shape
        value = value.transpose(1, 2).reshape(batch * heads, -1, value.shape[1])
        offsets = inner.sampling_offsets(query).reshape(batch, number, heads, levels, points, 2)
        weights = inner.attention_weights(query).reshape(batch, number, heads, levels * points).softmax(3)
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, number, levels, points)

        centre, extent = reference_points[:, :, None, :, None, :2], reference_points[:, :, None, :, None, 2:]
        offsets = offsets / self.lengths[:, None] if reference_points.shape[-1] == 2 else offsets / points * extent * 0.5
        grids = (2 * (centre + offsets) - 1).transpose(1, 2).flatten(0, 1)  # (B x heads, Q, levels, points, 2), from -1 to 1
        found = 0
        for level, (height, width) in enumerate(self.shapes):
            here, value = value[..., :height * width], value[..., height * width:]
            samples = F.grid_sample(here.unflatten(2, (height, width)), grids[:, :, level], align_corners=False)
            found = found + (samples * weights[..., level, :]).sum(3)
        found = found.reshape(batch, -1, number).transpose(1, 2)
        return inner.output_proj(found) + identity
