"""Ways from the tokens that are left back to a grid."""
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .method import Tokens, take_rows


class Drop(NamedTuple):
    """One step that keeps some tokens of a sequence."""
    before: Tensor  # patch tokens (B, N, C) in front of it
    order: Tensor  # (B, N), those that are kept first
    num_kept: int
    num_new: int = 0  # tokens that it appends, such as a fused one
    into: Tensor | None = None  # of which dropped tokens those are made (B, num_new, N - num_kept), where each goes into one of them


def left_by(tokens: Tokens) -> Tensor:
    """What the steps in `history` that are a `Drop` have left of each patch: the present token that it is part of, or -1, (B, N0)."""
    device = tokens.x.device
    labels = torch.arange(tokens.grid[0] * tokens.grid[1], device=device).expand(tokens.x.shape[0], -1)
    for drop in tokens.history:
        if not isinstance(drop, Drop):
            continue
        B, N = drop.order.shape
        kept = torch.arange(drop.num_kept, device=device).expand(B, -1)
        dropped = drop.order.new_full((B, N - drop.num_kept), -1) if drop.into is None else drop.num_kept + drop.into.argmax(1)
        now = torch.cat([kept, dropped], dim=1).gather(1, drop.order.argsort(dim=1))  # of each token in front of the step
        labels = F.pad(now, (0, 1), value=-1).gather(1, labels.where(labels >= 0, N))
    return labels


def refill(y: Tensor, drops: Sequence[Drop], k: int = 20, temperature: float = 0.02) -> Tensor:
    """Undo steps that drop tokens, from the last to the first: (B, N, K) -> (B, N0, K).

    What was kept goes back to its place; what was dropped is a mean of the k kept tokens that were nearest to it when it was dropped, by
    their present values (`reconstruct`). What a step appended goes.
    """
    for drop in reversed(drops):
        kept, dropped = drop.order[:, :drop.num_kept], drop.order[:, drop.num_kept:]
        y = y[:, :drop.num_kept]
        if dropped.shape[1]:
            filled = reconstruct(y, take_rows(drop.before, dropped), take_rows(drop.before, kept), k, temperature, norm=1)
            y = torch.cat([y, filled], dim=1)
        y = take_rows(y, drop.order.argsort(dim=1))
    return y


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def at_full_precision(x: Tensor) -> AbstractContextManager:
    """Where distances between tokens are computed: autocast would round products to less than their differences."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if device != 'meta' and torch.is_autocast_enabled(device) else nullcontext()


def reconstruct(values: Tensor, queries: Tensor, keys: Tensor, k: int, temperature: float, norm: int = 2) -> Tensor:
    """Values of tokens nearby: sums over the k nearest keys, weighted by exp(-temperature * squared distance).

    Values (B, L, K) of the keys (B, L, C), queries (B, n, C) -> (B, n, K). Equal distances at the k-th place all count. norm: which norm of
    a row of weights is 1; 2 as published (https://arxiv.org/abs/2210.01035: k equal weights then sum to sqrt(k)), 1 for a mean.
    """
    queries, keys = precise(queries), precise(keys)
    # minus temperature * squared distance; a mean does not see what is the same for all keys, the query's own square
    own = (queries ** 2).sum(-1, keepdim=True) if norm == 2 else 0.
    with at_full_precision(queries):
        logits = torch.baddbmm(-temperature * ((keys ** 2).sum(-1)[:, None] + own), queries, keys.transpose(1, 2), alpha=2 * temperature)
        if k < keys.shape[1]:
            least = logits.topk(k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if norm == 1:
            weights = logits.softmax(-1)
        else:
            # exp(logits) / max(|exp(logits)|, 1e-12), which underflows where the nearest key is far
            weights = logits.exp()
            weights = weights / weights.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return weights.to(values.dtype) @ values
