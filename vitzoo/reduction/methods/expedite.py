"""Expedite: Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning, https://arxiv.org/abs/2210.01035

Behind a block, the patches are clustered to a coarser grid, where the blocks that follow work; the full grid is reconstructed from the
clusters at the end. Nothing is learned and nothing is read from attention, so that it goes with any transformer and any task.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...arguments import check_range
from ...layers import per_size
from ..method import Method, Tokens, mix_positions
from ..restore import at_full_precision, precise, reconstruct

MOST = 2 ** 16  # clusters along a side, and neighbours
Size = tuple[int, int]


class Clustering(NamedTuple):
    """A step that makes L clusters of n patches."""
    before: Tensor  # patch tokens (B, n, C)
    after: Tensor  # clusters (B, L, C)
    grid: Size  # of the clusters
    rope: Tensor | None  # positions of the patches


@per_size
def _cells(grid: Size, clusters: Size) -> np.ndarray:
    """Adaptive average pooling of the grid to the clusters, (L, n): each cluster is the mean of the patches that it overlaps."""
    axes = []
    for length, count in zip(grid, clusters, strict=True):
        first, patch = np.arange(count)[:, None], np.arange(length)
        axis = (patch >= first * length // count) & (patch < -(-(first + 1) * length // count))
        axes.append(axis / axis.sum(1, keepdims=True))
    return np.kron(*axes)


@per_size
def _out_of_reach(grid: Size, clusters: Size, window: int) -> np.ndarray:
    """(L, n): 0 where a patch may join a cluster, -inf where that is more than window // 2 clusters off along a side."""
    axes = []
    for length, count in zip(grid, clusters, strict=True):
        # rounded as the published code has it from F.interpolate: of 46 patches and 14 clusters, patch 23 belongs to cluster 6
        place = np.arange(length, dtype=np.float32) * (np.float32(count) / np.float32(length))
        axes.append(np.abs(place.astype(int) - np.arange(count)[:, None]) <= window // 2)
    return np.where(np.kron(*axes), 0., -np.inf)


def cluster(x: Tensor, grid: Size, clusters: Size, n_iters: int, window: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Soft k-means within a window, from the means of a regular grid on: patches (B, n, C) -> clusters (B, L, C), and how much of each
    patch they are made of (B, L, n).

    A patch is shared among the clusters in its reach, by a softmax over -temperature * squared distance; a cluster is the mean of what it
    gets.
    """
    weights = _cells(grid, clusters, like=x)
    out_of_reach = _out_of_reach(grid, clusters, window, like=x)
    centres = weights @ x
    for _ in range(n_iters):
        # the square of the patch's own length is the same for all clusters, and the softmax does not see it
        bias = out_of_reach - temperature * (centres ** 2).sum(-1, keepdim=True)
        weights = torch.baddbmm(bias, centres, x.transpose(1, 2), alpha=2 * temperature).softmax(dim=1)
        centres = weights @ x / weights.sum(-1, keepdim=True).clamp_min(1e-16)
    return centres, weights.expand(x.shape[0], -1, -1)


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The cluster (B, L, C) that is nearest to each patch (B, n, C), however far off in the grid: (B, n)."""
    return ((centres ** 2).sum(-1)[:, None] - 2 * x @ centres.transpose(1, 2)).argmin(-1)


@dataclass(frozen=True)
class Expedite(Method):
    """Clusters the patches to a coarser grid behind a block, and reconstructs the full grid behind the last.

    A head that pools over patches sees the reconstructed ones, as means of their clusters (the published reconstruction is no mean: its
    weights do not sum to 1); one that reads the class token alone costs no reconstruction. In a model with rotary positions a cluster has
    the mean position of its patches, by their shares.

    Args:
        location: the last block at full resolution, from 0.
        clusters: rows and columns of the grid of clusters, or one number for both; or the share of the rows and columns that are kept,
            0 to 1 (excluded), for images of many sizes. As published, the ratio of its sides should be the image's. A side that has no
            more patches than that is not clustered: where none is, nothing happens.
        n_iters: steps of k-means; with 0 clusters are the means of a regular grid.
        window: a patch can join the clusters of so many rows and columns, an odd number, around its place.
        temperature: how sharply it decides; it multiplies squared distances.
        k: a patch is reconstructed from so many clusters that were nearest to it; -1 for all.
        rec_temperature: how sharply those are weighted; None as `temperature`.
        rec_location: where the grid is reconstructed. None, or the last block: in each map that is asked for, behind its block, and behind
            the final norm where it gets that. Another block behind `location`: there, and the blocks that follow work at full resolution.
            -1: nowhere, maps have the grid of the clusters.
    """
    location: int = 3
    clusters: int | float | tuple[int, int] = (7, 7)
    n_iters: int = 5
    window: int = 5
    temperature: float = 0.02
    k: int = 20
    rec_temperature: float | None = None
    rec_location: int | None = None

    def __post_init__(self):
        if isinstance(self.clusters, float):
            if not 0 < self.clusters < 1:
                raise ValueError(f'clusters={self.clusters}: expected whole numbers, or a share of the sides between 0 and 1.')
        else:
            check_range(1, MOST, clusters=self.clusters)
        check_range(0, 100, n_iters=self.n_iters)
        check_range(1, MOST, window=self.window)
        if self.window % 2 == 0:
            raise ValueError(f'window={self.window}: expected an odd number.')
        check_range(0, 1e6, temperature=self.temperature)
        if self.rec_temperature is not None:
            check_range(0, 1e6, rec_temperature=self.rec_temperature)
        if self.k != -1:
            check_range(1, MOST, k=self.k)

    @property
    def full_grid(self) -> bool:
        return self.rec_location != -1

    def check(self, model: nn.Module) -> None:
        depth = len(model.blocks)
        if not 0 <= self.location < depth - 1:
            raise ValueError(f'location={self.location}: expected a block from 0 to {depth - 2}, as those behind it work on the clusters.')
        if self.rec_location not in (None, -1) and not self.location < self.rec_location < depth:
            raise ValueError(f'rec_location={self.rec_location}: expected a block behind location={self.location}, to {depth - 1}; None; '
                             'or -1.')

    def cluster_grid(self, grid: Size) -> Size:
        """Rows and columns of clusters in a grid of patches."""
        if isinstance(self.clusters, float):
            return tuple(math.ceil(self.clusters * length) for length in grid)
        counts = (self.clusters, self.clusters) if isinstance(self.clusters, int) else self.clusters
        return tuple(map(min, counts, grid))

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        """N after each block. Of the grids with so many patches the one is meant that is most nearly square."""
        rows = next(n for n in range(math.isqrt(num_patches), 0, -1) if num_patches % n == 0)
        count = math.prod(self.cluster_grid((rows, num_patches // rows)))
        dense = depth if self.rec_location in (None, -1, depth - 1) else self.rec_location
        return tuple(count if self.location < i < dense else num_patches for i in range(depth))

    def pre(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        # in front of the block behind, so that a map of the block `location` itself is what it was
        clusters = self.cluster_grid(tokens.grid)
        if i != self.location + 1 or clusters == tokens.grid:
            return tokens
        prefix, x = tokens.x[:, :tokens.num_prefix], tokens.patches
        with at_full_precision(x):
            centres, weights = cluster(precise(x), tokens.grid, clusters, self.n_iters, self.window, self.temperature)
            rope = None if tokens.rope is None else mix_positions(tokens.rope, weights)
        centres = centres.to(x.dtype)
        step = Clustering(x, centres, clusters, tokens.rope)
        return tokens._replace(x=torch.cat([prefix, centres], dim=1), rope=rope, history=(step,))

    def post(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        if i != self.rec_location or i == len(model.blocks) - 1 or not tokens.history:
            return tokens
        step, = tokens.history
        x = torch.cat([tokens.x[:, :tokens.num_prefix], self._reconstruct(tokens.patches, step)], dim=1)
        return tokens._replace(x=x, rope=step.rope, history=())

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, Size]:
        if not tokens.history:
            return y, tokens.grid
        step, = tokens.history
        return (self._reconstruct(y, step), tokens.grid) if self.full_grid else (y, step.grid)

    def labels(self, tokens: Tokens) -> Tensor:
        """For each patch the cluster that is nearest to it, from 0, (B, N0); each its own where there are no clusters."""
        if not tokens.history:
            return torch.arange(tokens.num_patches, device=tokens.x.device).expand(tokens.x.shape[0], -1)
        step, = tokens.history
        with at_full_precision(step.before):
            return nearest(precise(step.before), precise(step.after))

    def to_pool(self, y: Tensor, tokens: Tokens) -> Tensor:
        return self._reconstruct(y, tokens.history[0], norm=1) if tokens.history else y

    def _reconstruct(self, values: Tensor, step: Clustering, norm: int = 2) -> Tensor:
        """Values (B, L, K) of the clusters -> of the patches (B, n, K)."""
        temperature = self.temperature if self.rec_temperature is None else self.rec_temperature
        return reconstruct(values, step.before, step.after, MOST if self.k == -1 else self.k, temperature, norm)
