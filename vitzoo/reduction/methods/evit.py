"""EViT: Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations, https://arxiv.org/abs/2202.07800

In a few blocks, the patches that the class token attends to most are kept, and the rest is fused into one token.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...arguments import check_range
from ...layers import check_choice
from ..method import Method, Seen, Tokens, mix_positions, no_positions
from ..restore import Drop, refill
from ._checks import check_locations, rates_at


@dataclass(frozen=True)
class EViT(Method):
    """Keeps the patches that the class token attends to most, between attention and MLP of a few blocks.

    Args:
        keep_rate: the share of the tokens that is kept, 0 (excluded) to 1; one for all locations or one for each. Of N tokens
            ceil(keep_rate * N) stay; where that is all of them nothing happens.
        locations: the blocks, from 0.
        fuse: add one token, the sum of the dropped ones weighted by their (not normalised) attention. It is a token like others later.
        position: of a fused token, in a model with rotary positions: 'mean' of the dropped ones by their weight, 'keep' for that of the
            heaviest, 'none' as a prefix token has.
    """
    keep_rate: float | tuple[float, ...] = 0.7
    locations: tuple[int, ...] = (3, 6, 9)
    fuse: bool = True
    position: str = 'mean'
    needs_class_token = True

    def __post_init__(self):
        rates_at(self.keep_rate, self.locations)
        check_range(1e-6, 1, keep_rate=self.keep_rate)
        check_choice('position', self.position, 'mean', 'keep', 'none')

    def check(self, model: nn.Module) -> None:
        check_locations(self.locations, model)

    def num_kept(self, i: int, num_patches: int) -> int:
        """How many of N patch tokens stay in block i."""
        return math.ceil(rates_at(self.keep_rate, self.locations).get(i, 1) * num_patches)

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        counts = []
        for i in range(depth):
            kept = self.num_kept(i, num_patches)
            num_patches = kept + self.fuse if kept < num_patches else num_patches
            counts.append(num_patches)
        return tuple(counts)

    def want(self, model: nn.Module, i: int) -> str | None:
        return 'keys' if rates_at(self.keep_rate, self.locations).get(i, 1) < 1 else None

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        num_kept = self.num_kept(i, tokens.num_patches)
        if num_kept == tokens.num_patches:
            return tokens
        scores = seen.rows(slice(0, 1)).mean(1)[:, 0, tokens.num_prefix:]
        scores, order = scores.sort(dim=1, descending=True)
        drop = Drop(tokens.patches, order, num_kept, int(self.fuse))
        if not self.fuse:
            return tokens.take(order[:, :num_kept]).with_step(drop)
        tokens = tokens.take(order)
        kept, dropped = tokens.x.split([tokens.num_prefix + num_kept, order.shape[1] - num_kept], dim=1)
        weights = scores[:, None, num_kept:].to(dropped.dtype)
        rope = None if tokens.rope is None else self._positions(tokens.rope, weights, num_kept)
        return tokens._replace(x=torch.cat([kept, weights @ dropped], dim=1), rope=rope).with_step(drop)

    def _positions(self, rope: Tensor, weights: Tensor, num_kept: int) -> Tensor:
        kept, dropped = rope.split([num_kept, rope.shape[3] - num_kept], dim=3)
        if self.position == 'mean':
            fused = mix_positions(dropped, weights)
        elif self.position == 'keep':
            fused = dropped[:, :, :, :1]  # in order of their attention
        else:
            fused = no_positions(dropped[:, :, :, :1])
        return torch.cat([kept, fused], dim=3)

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        return refill(y, tokens.history), tokens.grid
