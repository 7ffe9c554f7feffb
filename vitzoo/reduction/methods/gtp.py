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
from ._checks import check_position

MOST = 2 ** 16  # tokens dropped in a block, neighbours
SELECTIONS = ('CLSAttnMean', 'CLSAttnMax', 'IMGAttnMean', 'IMGAttnMax', 'DiagAttnMean', 'DiagAttnMax', 'MixedAttnMean', 'MixedAttnMax',
              'SumAttnMax', 'CosSimMean', 'CosSimMax', 'Random')


@per_size
def spatial_graph(h: int, w: int) -> np.ndarray:
    """Which patches (h * w, h * w) of a grid touch, corners included: 1 or 0."""
    y, x = np.divmod(np.arange(h * w), w)
    touch = (np.abs(y[:, None] - y) <= 1) & (np.abs(x[:, None] - x) <= 1)
    return (touch & ~np.eye(h * w, dtype=bool)).astype(np.float32)


def semantic_graph(x: Tensor, k: int) -> Tensor:
    """Which patches (B, N, C) are among the k that are most like each one, by cosine, itself counted but left out: (B, N, N), booleans."""
    x = F.normalize(x, dim=-1)
    similarity = x @ x.transpose(1, 2)
    near = similarity >= similarity.topk(min(k, x.shape[1]), dim=-1).values[..., -1:]
    return near & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)


def normalised(graph: Tensor) -> Tensor:
    """D^-1/2 G D^-1/2 of zeros and ones (B, N, N), with D the sums of rows."""
    degree = graph.sum(-1).clamp_min(1).rsqrt()
    return degree[:, :, None] * graph * degree[:, None]


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
    P = num_prefix
    over_heads = torch.Tensor.mean if selection.endswith('Mean') else torch.Tensor.amax
    if selection.startswith('CLS'):
        return over_heads(seen.rows(slice(0, 1)), 1)[:, 0, P:]
    if selection == 'Random':
        B, _, N, _ = seen.k.shape
        return torch.rand(B, N - P, device=seen.k.device)
    if selection.startswith('CosSim'):
        rows = F.normalize(over_heads(seen.map, 1)[:, P:], dim=-1)
        return -(rows @ rows.sum(1)[:, :, None])[:, :, 0]  # the sum of a row's cosines with all rows
    if not selection.startswith('Diag'):
        columns = over_heads(seen.map.sum(2), 1)[:, P:]
    if selection.startswith('IMG'):
        return columns
    diagonal = over_heads(seen.map.flatten(2)[:, :, ::seen.map.shape[3] + 1], 1)[:, P:]
    if selection.startswith('Diag'):
        return diagonal
    return diagonal * columns if selection.startswith('Mixed') else diagonal + columns


def between(graph: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A part of a graph (B or 1, N0, N0): rows (B, K), columns (B, D) -> (B, K, D)."""
    index = rows[:, :, None] * graph.shape[2] + columns[:, None]
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
        check_position(self.position, 'mean', 'none')
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
        """Keeps (graph (B or 1, N0, N0), the place on the grid of each token (B, N))."""
        if self.propagation != 'GraphProp':
            return tokens
        x = tokens.patches
        B, N = x.shape[:2]
        graph = spatial_graph(*tokens.grid, like=x)[None]
        if self.graph_type != 'Spatial':
            near = semantic_graph(x, self.num_neighbours + (1 if tokens.num_prefix else 2))
            graph = (near | graph.bool() if self.graph_type == 'Mixed' else near).to(x.dtype)
        places = torch.arange(N, device=x.device).expand(B, N)
        return tokens._replace(memory=(normalised(graph), places))

    def want(self, model: nn.Module, i: int) -> str | None:
        if self.sparsity < 1:
            return 'map'
        if not self.num_dropped(i, MOST + 1):
            return None
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
        kept, dropped = tokens.take(order[:, :num_kept]), tokens.take(order[:, num_kept:])
        if self.propagation == 'GraphProp':
            kept = self._propagate(kept, dropped, order, tokens)
        elif self.propagation == 'Mean':
            kept = self._append_mean(kept, dropped)
        return kept._replace(history=(*tokens.history, drop))

    def _propagate(self, kept: Tokens, dropped: Tokens, order: Tensor, tokens: Tokens) -> Tokens:
        graph, places = tokens.memory
        kept_places, dropped_places = places.gather(1, order).split([kept.num_patches, dropped.num_patches], dim=1)
        weights = self.alpha * between(graph, kept_places, dropped_places)
        weights = F.pad(weights, (0, 0, kept.num_prefix, 0))  # nothing goes to the prefix
        x = kept.x + weights.to(kept.x.dtype) @ dropped.patches
        size = kept.size
        if self.token_scale:
            grown = weights.sum(2) if size is None else (weights @ dropped.size[:, dropped.num_prefix:, None])[:, :, 0]
            size = (1 if size is None else size) + grown
        return kept._replace(x=x, size=size, memory=(graph, kept_places))

    def _append_mean(self, kept: Tokens, dropped: Tokens) -> Tokens:
        x = torch.cat([kept.x, dropped.patches.mean(1, keepdim=True)], dim=1)
        rope = kept.rope
        if rope is not None:
            if self.position == 'mean':
                new = mix_positions(dropped.rope, rope.new_ones(x.shape[0], 1, dropped.num_patches))
            else:
                new = no_positions(dropped.rope[:, :, :, :1])
            rope = torch.cat([rope, new], dim=3)
        return kept._replace(x=x, rope=rope)

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        return refill(y, tokens.history), tokens.grid
