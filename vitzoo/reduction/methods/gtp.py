"""GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation, https://arxiv.org/abs/2311.03035

In every block a few tokens that attention makes little of are dropped, and what they hold goes to their neighbours in a graph of the
patches. The graph is made once, of the grid and of the embedded patches.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import check_range, show
from ...layers import check_choice, per_size
from ..method import Method, Seen, Tokens, mix_positions, no_positions
from ..restore import Drop, refill

MOST = 2 ** 16  # tokens dropped in a block, neighbours
SELECTIONS = ('CLSAttnMean', 'CLSAttnMax', 'IMGAttnMean', 'IMGAttnMax', 'DiagAttnMean', 'DiagAttnMax', 'MixedAttnMean', 'MixedAttnMax',
              'SumAttnMax', 'CosSimMean', 'CosSimMax', 'Random')


@per_size
def grid_graphs(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Two graphs of a grid's patches, (h * w, h * w) each of 0 and 1: which ones touch, corners included, and all with all others."""
    y, x = np.divmod(np.arange(h * w), w)
    touch = (np.abs(y[:, None] - y) <= 1) & (np.abs(x[:, None] - x) <= 1)
    others = ~np.eye(h * w, dtype=bool)
    return (touch & others).astype(np.float32), others.astype(np.float32)


def most_alike(x: Tensor, k: int) -> Tensor:
    """For each patch (B, N, C) the k that are most like it by cosine, of which it is one: (B, N, N), booleans."""
    x = F.normalize(x, dim=-1)
    similarity = x @ x.transpose(1, 2)
    return similarity >= similarity.topk(min(k, x.shape[1]), dim=-1).values[:, :, -1:]


def normalised(graph: Tensor, factor: float = 1.) -> Tensor:
    """factor * D^-1/2 G D^-1/2 of zeros and ones (B, N, N), with D the sums of rows."""
    scale = graph.sum(-1).clamp_min(1).rsqrt()
    return factor * scale[:, :, None] * graph * scale[:, None]


def sparse(attention: Tensor, share: float) -> Tensor:
    """Attention (B, H, N, N) of which about this share is left in each head. The smallest become 0; rows then sum to less than 1."""
    count = attention.shape[2] ** 2
    K = int(count * (1 - share))
    if not K:
        return attention
    flat = attention.flatten(2)
    if 2 * K <= count:  # the K-th smallest, from the nearer end
        least = flat.topk(K, largest=False, sorted=False).values.amax(-1)
    else:
        least = flat.topk(count - K + 1, sorted=False).values.amin(-1)
    return attention.masked_fill(attention < least[:, :, None, None], 0)


def rate(selection: str, seen: Seen, num_prefix: int) -> Tensor:
    """How much attention makes of each patch token, (B, N), one of `SELECTIONS`; see `GTP`."""
    over_heads = torch.Tensor.mean if selection.endswith('Mean') else torch.Tensor.amax

    def from_all():
        return over_heads(seen.map.sum(2), 1)

    def to_itself():
        return over_heads(seen.map.flatten(2)[:, :, ::seen.map.shape[3] + 1], 1)

    if selection.startswith('CLS'):
        scores = over_heads(seen.rows(slice(0, 1)), 1)[:, 0]
    elif selection.startswith('IMG'):
        scores = from_all()
    elif selection.startswith('Diag'):
        scores = to_itself()
    elif selection.startswith('Mixed'):
        scores = to_itself() * from_all()
    elif selection.startswith('Sum'):
        scores = to_itself() + from_all()
    elif selection.startswith('CosSim'):
        rows = F.normalize(over_heads(seen.map, 1)[:, num_prefix:], dim=-1)
        return -(rows @ rows.sum(1)[:, :, None])[:, :, 0]  # the sum of a row's cosines with all of these rows
    else:
        scores = torch.rand(seen.k[:, 0, :, 0].shape, device=seen.k.device)
    return scores[:, num_prefix:]


def between(graph: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weights of a graph (B or 1, N0, N0) between places of rows (B, K) and of columns (B, D): (B, K, D)."""
    index = (rows * graph.shape[2])[:, :, None] + columns[:, None]
    return graph.flatten(1).expand(rows.shape[0], -1).gather(1, index.flatten(1)).view(index.shape)


@dataclass(frozen=True)
class GTP(Method):
    """Drops tokens in every block, between attention and MLP, and gives a share of them to those that stay and that they are joined to.

    Args:
        num_prop: patch tokens dropped in each block, one number or a list of one for each block; at least one is left, and 0 drops none.
        selection: which ones: those that score least, the mean or the maximum over heads, by what the class token attends to (CLSAttn),
            the attention that a token gets from all (IMGAttn) or pays to itself (DiagAttn), the product of these two (MixedAttn), their
            sum (SumAttn), or how little its row of the map is like those of others (CosSim); or by chance (Random, another choice in
            each forward: for comparisons). CLSAttn alone works without the attention map, and is the quickest.
        propagation: where the dropped ones go: 'GraphProp' to their neighbours, 'Mean' into one new token, 'None' nowhere.
        graph_type: neighbours are the 8 'Spatial' ones, the 'Semantic' ones that were most like a patch when it was embedded, or both
            ('Mixed'). Nothing but 'GraphProp' has a graph.
        num_neighbours: semantic ones of each patch; one more in a model without prefix tokens, as published. A dropped token without
            neighbours among those that are left is lost.
        sparsity: the share of each head's attention map that is kept, 0 to 1; the rest becomes 0. This costs time and saves none.
        alpha: the weight of what goes to neighbours.
        token_scale: a token counts for as many keys as went into it. Scales grow by 'GraphProp' alone; without it there are none.
        position: of the new token of 'Mean', in a model with rotary positions: 'mean' of the dropped ones, 'none' as a prefix token has.

    Back on the grid, a dropped token is a mean of those that were most like it, as in `restore.refill`: the graph has none for some.
    """
    num_prop: int | tuple[int, ...] = 8
    selection: str = 'MixedAttnMax'
    propagation: str = 'GraphProp'
    graph_type: str = 'Mixed'
    num_neighbours: int = 8
    sparsity: float = 1.0
    alpha: float = 0.2
    token_scale: bool = True
    position: str = 'mean'

    def __post_init__(self):
        check_range(0, MOST, num_prop=self.num_prop, num_neighbours=self.num_neighbours)
        check_range(0, 1, sparsity=self.sparsity)
        check_range(0, 1e4, alpha=self.alpha)
        check_choice('selection', self.selection, *SELECTIONS)
        check_choice('propagation', self.propagation, 'GraphProp', 'Mean', 'None')
        check_choice('graph_type', self.graph_type, 'Mixed', 'Spatial', 'Semantic', 'None')
        check_choice('position', self.position, 'mean', 'none')
        if self.propagation == 'GraphProp' and self.graph_type == 'None':
            raise ValueError("graph_type='None': there is no graph to propagate along; choose 'Mixed', 'Spatial' or 'Semantic', or "
                             "propagation='Mean' or 'None'.")

    def check(self, model: nn.Module) -> None:
        depth = len(model.blocks)
        if isinstance(self.num_prop, tuple) and len(self.num_prop) != depth:
            raise ValueError(f'num_prop={show(self.num_prop)}: expected one number, or {depth} as there are blocks.')
        if self.selection.startswith('CLS') and model.cls_token is None:
            raise ValueError(f"selection={self.selection!r}: this {type(model).__name__} has no class token; choose 'MixedAttnMax' or "
                             'another one that needs none.')

    def num_dropped(self, i: int, num_patches: int) -> int:
        """How many of N patch tokens go in block i."""
        num = self.num_prop if isinstance(self.num_prop, int) else self.num_prop[i]
        return min(num, max(num_patches - 1, 0))

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        counts = []
        for i in range(depth):
            dropped = self.num_dropped(i, num_patches)
            num_patches -= dropped - (dropped > 0 and self.propagation == 'Mean')
            counts.append(num_patches)
        return tuple(counts)

    def start(self, model: nn.Module, tokens: Tokens) -> Tokens:
        """Keeps (alpha * graph (B or 1, N0, N0), the place on the grid of each token (B, N))."""
        if self.propagation != 'GraphProp' or self.num_prop == 0:
            return tokens
        x = tokens.patches.to(torch.promote_types(tokens.x.dtype, torch.float32))  # half precision counts neighbours with ties
        graph, others = (table[None] for table in grid_graphs(*tokens.grid, like=x))
        if self.graph_type != 'Spatial':
            near = most_alike(x, self.num_neighbours + (1 if tokens.num_prefix else 2))
            graph = torch.where(near, others, graph if self.graph_type == 'Mixed' else 0)
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return tokens._replace(memory=(normalised(graph, self.alpha), places))

    def want(self, model: nn.Module, i: int) -> str | None:
        if self.sparsity < 1:
            return 'map'
        if not self.num_dropped(i, MOST + 1):
            return None
        # a diagonal alone needs the sum of every row, for which the map is computed all the same
        return 'keys' if self.selection.startswith(('CLS', 'Random')) else 'map'

    def edit_map(self, i: int, attention: Tensor) -> Tensor:
        return sparse(attention, self.sparsity)

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        num_dropped = self.num_dropped(i, tokens.num_patches)
        if not num_dropped:
            return tokens
        num_kept = tokens.num_patches - num_dropped
        order = rate(self.selection, seen, tokens.num_prefix).argsort(dim=1, descending=True)
        drop = Drop(tokens.patches, order, num_kept, int(self.propagation == 'Mean'))
        if self.propagation == 'None':
            return tokens.take(order[:, :num_kept]).with_step(drop)
        tokens = tokens.take(order)
        tokens = self._propagate(tokens, order, num_kept) if self.propagation == 'GraphProp' else self._append_mean(tokens, num_kept)
        return tokens.with_step(drop)

    def _propagate(self, tokens: Tokens, order: Tensor, num_kept: int) -> Tokens:
        """Tokens in order of their scores: the dropped ones, at the end, go to their neighbours."""
        graph, places = tokens.memory
        split = [tokens.num_prefix + num_kept, tokens.num_patches - num_kept]
        places, gone = places.gather(1, order).split([num_kept, split[1]], dim=1)
        weights = F.pad(between(graph, places, gone), (0, 0, tokens.num_prefix, 0))  # nothing goes to the prefix
        kept, dropped = tokens.x.split(split, dim=1)
        x = kept + weights.to(kept.dtype) @ dropped
        if not self.token_scale:
            size = None
        elif tokens.size is None:
            size = 1 + weights.sum(2)
        else:
            kept, dropped = tokens.size.split(split, dim=1)
            size = kept + (weights @ dropped[:, :, None])[:, :, 0]
        rope = None if tokens.rope is None else tokens.rope[:, :, :, :num_kept]
        return tokens._replace(x=x, size=size, rope=rope, memory=(graph, places))

    def _append_mean(self, tokens: Tokens, num_kept: int) -> Tokens:
        """Tokens in order of their scores: the dropped ones, at the end, become their mean."""
        split = [tokens.num_prefix + num_kept, tokens.num_patches - num_kept]
        kept, dropped = tokens.x.split(split, dim=1)
        rope = tokens.rope
        if rope is not None:
            old, new = rope.split([num_kept, split[1]], dim=3)
            new = mix_positions(new, new.new_ones(len(dropped), 1, split[1])) if self.position == 'mean' else no_positions(new[:, :, :, :1])
            rope = torch.cat([old, new], dim=3)
        return tokens._replace(x=torch.cat([kept, dropped.mean(1, keepdim=True)], dim=1), rope=rope)

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        return refill(y, tokens.history), tokens.grid
