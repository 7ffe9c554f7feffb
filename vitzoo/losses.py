"""Losses that belong to no framework, and what they need of a model.

Attention diversification: Robustifying Token Attention for Vision Transformers, https://arxiv.org/abs/2303.11126
"""
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_range, check_types, show
from .layers import check_choice


def attention_similarity(attention: Tensor, threshold: float = 2.) -> Tensor:
    """How much the queries of a layer look alike: attention (B, heads, Q, K), whose rows sum to 1, -> a scalar from 0 to 1.

    The mean cosine of each query's attention, averaged over the heads, with that of the mean query, among the keys that get more than
    `threshold / K`. Others count as zeros, in either, and pass no gradient. Where no key gets so much of the mean query, as in flat
    attention, the cosine is 0.
    """
    attention = attention.float() if attention.dtype in (torch.float16, torch.bfloat16) else attention
    rows = attention.mean(1)
    mean = rows.mean(1, keepdim=True)
    least = threshold / attention.shape[-1]
    rows, mean = (x.where(x > least, 0) for x in (rows, mean))
    return F.cosine_similarity(mean, rows, dim=-1).mean()


class AttentionDiversification(nn.Module):
    """Attention diversification loss, ADL: keeps the queries of a layer from all looking at the same few keys.

    Added to the loss of the classes, with a weight of 1 as published:

        with collect_attention(model) as maps:
            logits = model(images)
        loss = criterion(logits, labels) + diversification(maps)

    Each image counts alone, so that a batch of one gives what it gives in a larger batch. The published code gives 0 there: it drops the
    axis of images when there is one, and means over keys instead of queries.

    Args:
        threshold: how many times the share of flat attention, 1 / K, a key must get to count. 2 as published.
        weight: factor of the loss.
        reduction: 'mean' over the layers, 'sum', or 'none' for one value a layer.

    Raises:
        ValueError: a threshold or weight that is not positive, or another reduction.
    """

    @check_types
    def __init__(self, threshold: float = 2., weight: float = 1., reduction: str = 'mean'):
        super().__init__()
        check_range(0, float('inf'), threshold=threshold, weight=weight)
        check_choice('reduction', reduction, 'mean', 'sum', 'none')
        self.threshold = threshold
        self.weight = weight
        self.reduction = reduction

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Attention maps (B, heads, Q, K), one a layer, after the softmax, -> a scalar, or one value a layer.

        Raises ValueError where there is no map, or one of another shape.
        """
        if not maps or not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps):
            raise ValueError(f'maps={show([tuple(getattr(x, "shape", ())) for x in maps])}: expected an attention map (B, heads, Q, K) a '
                             'layer, at least one; see collect_attention.')
        each = torch.stack([attention_similarity(x, self.threshold) for x in maps]) * self.weight
        if self.reduction == 'none':
            return each
        return each.sum() / (len(each) + 1e-6) if self.reduction == 'mean' else each.sum()


@contextmanager
def collect_attention(model: nn.Module, layers: str = '') -> Iterator[list[Tensor]]:
    """Collect the attention maps (B, heads, Q, K) of the forward passes inside the block, after the softmax and before the dropout.

    For timm's transformers and for ours: all attention that can be fused, and has `attn_drop` where it is not. Inside the block it is not
    fused, which costs the time and memory of the maps. Maps of one pass follow those of another in the list.

    Args:
        model: in training or eval mode.
        layers: a regular expression; attention modules of other names stay as they are (`r'blocks\\.(9|10|11)\\.'`).

    Raises:
        ValueError: no such attention, or gradient checkpointing, which would compute the blocks again where nobody collects.
    """
    chosen = [module for name, module in model.named_modules()
              if hasattr(module, 'fused_attn') and hasattr(module, 'attn_drop') and re.search(layers, f'{name}.')]
    if not chosen:
        raise ValueError(f'layers={show(layers)}: {type(model).__name__} has no such attention whose maps can be seen (a module with '
                         'fused_attn and attn_drop).')
    if any(getattr(module, 'grad_checkpointing', False) for module in model.modules()):
        raise ValueError('attention maps cannot be collected under gradient checkpointing; call model.set_grad_checkpointing(False).')
    maps: list[Tensor] = []
    fused = [module.fused_attn for module in chosen]
    hooks = [module.attn_drop.register_forward_pre_hook(lambda module, args: maps.append(args[0])) for module in chosen]
    try:
        for module in chosen:
            module.fused_attn = False
        yield maps
    finally:
        for module, was, hook in zip(chosen, fused, hooks, strict=True):
            module.fused_attn = was
            hook.remove()
