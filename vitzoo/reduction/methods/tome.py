"""ToMe: Token Merging: Your ViT But Faster, https://arxiv.org/abs/2210.09461

In every block the r most similar pairs of tokens become one, found by one bipartite matching of the keys.
"""
import operator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...arguments import as_type, check_range, show
from ...layers import check_choice
from ..method import Method, Seen, Tokens, key_bias, take_positions, take_rows, unit_length

MOST = 2 ** 16  # tokens merged in a block


class Merge(NamedTuple):
    """Which of N rows become one. The new sequence: the prefix, the kept rows, then the targets, each with its sources."""
    rows: Tensor  # (B, U + r) rows that are no targets: those that stay as they are, then the sources
    num_kept: int  # U
    targets: slice  # T rows, the same in every image
    destinations: Tensor  # (B, r), the target of each source, 0 to T - 1
    num_prefix: int


def match(metric: Tensor, r: int, num_prefix: int = 1) -> Merge:
    """Bipartite soft matching: of rows (B, N, d) the r at even places that are most like one at an odd place, by cosine.

    Prefix rows take no part; r is at most half of the others. Rows at even places that are kept stay in order if there is a prefix, else
    they go by descending similarity, as published.
    """
    first = num_prefix + num_prefix % 2  # even place
    targets = slice(num_prefix + 1 - num_prefix % 2, None, 2)
    similarity, destinations = _similarities(metric, slice(first, None, 2), targets)
    order = similarity.argsort(dim=1, descending=True)
    sources, kept = order[:, :r], order[:, r:]
    if num_prefix:
        kept = kept.sort(dim=1).values
    rows = torch.cat([kept, sources], dim=1) * 2 + first
    return Merge(rows, operator.index(kept.shape[1]), targets, destinations.gather(1, sources), num_prefix)


def match_kth(metric: Tensor, k: int) -> Merge:
    """Every k-th row (B, N, d) is a target, all others are merged into the one that is most like them; N divides by k."""
    B, N = metric.shape[:2]
    sources = torch.arange(N, device=metric.device).view(-1, k)[:, :k - 1].flatten()
    targets = slice(k - 1, None, k)
    _, destinations = _similarities(metric, sources, targets)
    return Merge(sources.expand(B, -1), 0, targets, destinations, num_prefix=0)


def _similarities(metric: Tensor, sources: slice | Tensor, targets: slice) -> tuple[Tensor, Tensor]:
    """The largest cosine of each source (B, S) with a target, and which target that is."""
    metric = metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.bmm(metric[:, sources], metric[:, targets].transpose(1, 2)).max(dim=-1)


def merge_rows(x: Tensor, size: Tensor | None, merge: Merge) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of what becomes one, weighted by size: (B, N, C), (B, N) or None for ones -> (B, P + U + T, C), (B, P + U + T).

    Also how much each source counts in each target, (B, T, r).
    """
    P, U, targets = merge.num_prefix, merge.num_kept, x[:, merge.targets]
    if size is None:
        size = x.new_ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))  # bfloat16 counts to 256
    own, others = size[:, merge.targets], size.gather(1, merge.rows)
    places = torch.arange(operator.index(targets.shape[1]), device=x.device)
    weights = (merge.destinations[:, None] == places[:, None]) * others[:, None, U:]
    total = weights.sum(-1) + own
    moved = take_rows(x, merge.rows)
    # what nothing is merged into stays as it is, under autocast too: only the product is in half precision there
    added = (weights / total[..., None]).to(x.dtype).bmm(moved[:, U:])
    merged = torch.addcmul(added, targets, (own / total)[..., None].to(x.dtype))
    return torch.cat([x[:, :P], moved[:, :U], merged], dim=1), torch.cat([size[:, :P], others[:, :U], total], dim=1), weights


def new_rows(merge: Merge, count: int) -> Tensor:
    """For each of `count` rows the row of the merged sequence that it is now part of, (B, N)."""
    B, P, U = merge.rows.shape[0], merge.num_prefix, merge.num_kept
    rows = torch.arange(count, device=merge.rows.device).expand(B, -1)
    prefix, targets = rows[:, :P], rows[:, merge.targets]
    old = torch.cat([prefix, merge.rows[:, :U], targets, merge.rows[:, U:]], dim=1)
    new = torch.cat([rows[:, :P + U + targets.shape[1]], P + U + merge.destinations], dim=1)
    return new.gather(1, old.argsort(dim=1))


def labels(tokens: Tokens) -> Tensor:
    """For each input token, the prefix in front, the present token that it is part of: (B, P + N0)."""
    h, w = tokens.grid
    count = tokens.num_prefix + h * w
    result = torch.arange(count, device=tokens.x.device).expand(tokens.x.shape[0], -1)
    for merge in tokens.history:
        result = new_rows(merge, count).gather(1, result)
        count -= merge.destinations.shape[1]
    return result


@dataclass(frozen=True)
class ToMe(Method):
    """Merges the most similar tokens in every block, between attention and MLP.

    Args:
        r: tokens fewer after each block, at most half of the patch tokens. A list has a number for each block (0 for those behind its
            end); a tuple (r, inflection) is a linear schedule around r, with inflection from -1 (many in early blocks) to 1.
        prop_attn: a token counts for as many keys as it has patches.
        position: of a merged token, in a model with rotary positions: 'mean' of its patches by size, 'keep' for that of the one that the
            others were merged into, which agrees less with the unreduced model (benchmarks/reduction/rope.py).
        match: by which keys, in such a model: 'content' before their rotation, for the better maps, or 'rotated' behind it.
    """
    r: object = 13
    prop_attn: bool = True
    position: str = 'mean'
    match: str = 'content'

    def __post_init__(self):
        hint = list[int] if isinstance(self.r, list) else tuple[int, float] if isinstance(self.r, tuple) else int
        object.__setattr__(self, 'r', as_type('r', self.r, hint))
        check_range(0, MOST, r=self.r[0] if isinstance(self.r, tuple) else self.r)
        if isinstance(self.r, tuple) and not -1 <= self.r[1] <= 1:
            raise ValueError(f'r={show(self.r)}: expected (tokens a block, inflection from -1 to 1), or a list of a number a block.')
        check_choice('position', self.position, 'mean', 'keep')
        check_choice('match', self.match, 'content', 'rotated')

    def check(self, model: nn.Module) -> None:
        if isinstance(self.r, list) and len(self.r) > len(model.blocks):
            raise ValueError(f'r={show(self.r)}: expected at most {len(model.blocks)} numbers, as there are blocks.')

    def numbers(self, depth: int) -> list[int]:
        """r of each block."""
        if isinstance(self.r, int):
            return [self.r] * depth
        if isinstance(self.r, list):
            return self.r + [0] * (depth - len(self.r))
        r, inflection = self.r
        first = int(r * (1 - inflection))
        step = (2 * r - 2 * first) / max(depth - 1, 1)
        return [int(first + step * i) for i in range(depth)]

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        counts = []
        for r in self.numbers(depth):
            num_patches -= min(r, num_patches // 2)
            counts.append(num_patches)
        return tuple(counts)

    def want(self, model: nn.Module, i: int) -> str | None:
        return 'keys' if self.numbers(len(model.blocks))[i] else None

    def mask(self, model: nn.Module, i: int, q: Tensor, k: Tensor, tokens: Tokens) -> tuple[Tensor | None, Tokens]:
        return key_bias(tokens) if self.prop_attn else None, tokens

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        r = min(self.numbers(len(model.blocks))[i], tokens.num_patches // 2)
        if not r:
            return tokens
        keys = seen.content if self.match == 'content' else seen.k
        merge = match(keys.float().mean(1), r, tokens.num_prefix)
        x, size, weights = merge_rows(tokens.x, tokens.size, merge)
        rope = None if tokens.rope is None else self._positions(tokens, merge, weights)
        return tokens._replace(x=x, size=size, rope=rope).with_step(merge)

    def _positions(self, tokens: Tokens, merge: Merge, weights: Tensor) -> Tensor:
        P, U, rope = tokens.num_prefix, merge.num_kept, tokens.rope
        moved = take_positions(rope, merge.rows - P)
        depth, B, heads = moved.shape[:3]
        targets = rope.expand(depth, B, heads, -1, -1)[:, :, :, merge.targets.start - P::merge.targets.step]
        if self.position == 'mean':
            own = 1. if tokens.size is None else tokens.size[:, None, merge.targets, None].to(rope.dtype)
            targets = unit_length(targets * own + weights[:, None].to(rope.dtype) @ moved[:, :, :, U:]).to(rope.dtype)
        return torch.cat([moved[:, :, :, :U], targets], dim=3)

    def labels(self, tokens: Tokens) -> Tensor:
        return labels(tokens)[:, tokens.num_prefix:] - tokens.num_prefix

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        if not tokens.history:
            return y, tokens.grid
        return take_rows(y, self.labels(tokens)), tokens.grid

    def to_pool(self, y: Tensor, tokens: Tokens) -> Tensor:
        return self.restore(y, tokens)[0]
