"""What a token reduction method is: a few functions that the runner calls between the parts of a transformer's blocks.

Shapes, here and in the methods: B images, P prefix tokens (class, distillation, registers), N patch tokens at present, h x w the grid of
patches with N0 = h * w of them at the beginning, C channels, H heads of d channels each.
"""
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Tokens(NamedTuple):
    """What goes from block to block."""
    x: Tensor  # (B, P + N, C), prefix tokens in front
    num_prefix: int
    grid: tuple[int, int]  # (h, w)
    rope: Tensor | None = None  # rotary positions (depth or 1, B or 1, H or 1, N, D), sine and cosine; None: the model has none
    size: Tensor | None = None  # (B, P + N), how many keys each token counts for; None: one each
    history: tuple = ()  # what the steps so far did, as `restore` wants it
    memory: Any = None  # what else a method keeps: a tensor, or a tuple of such
    remember: bool = True  # whether anybody will ask for the grid, or for labels; else `history` stays empty, which saves memory

    @property
    def patches(self) -> Tensor:
        """(B, N, C)."""
        return self.x[:, self.num_prefix:]

    @property
    def num_patches(self) -> int:
        """N."""
        return operator.index(self.x.shape[1]) - self.num_prefix  # a number for TorchScript's tracer too

    def with_step(self, step: Any) -> 'Tokens':
        """The same with one more step in `history`, where that is wanted."""
        return self._replace(history=(*self.history, step)) if self.remember else self

    def take(self, index: Tensor) -> 'Tokens':
        """The prefix and these patch tokens, (B, K) from 0 on, in this order, each with its position and size."""
        rows = behind_prefix(index, self.num_prefix)
        return self._replace(
            x=take_rows(self.x, rows),
            rope=None if self.rope is None else take_positions(self.rope, index),
            size=None if self.size is None else self.size.gather(1, rows))


class Seen(NamedTuple):
    """What a block's attention saw. All that is not asked for costs nothing."""
    q: Tensor  # queries (B, H, P + N, d), normalised and rotated
    k: Tensor  # keys (B, H, P + N, d), normalised and rotated
    content: Tensor  # keys (B, H, P + N, d) as projected, neither normalised nor rotated; of grouped-query attention its fewer heads
    bias: Tensor | None  # what was added to the logits, or a boolean mask of the keys that were seen
    scale: float
    map: Tensor | None  # (B, H, P + N, P + N) where `want` says so

    def rows(self, queries: slice) -> Tensor:
        """The attention (B, H, Q, P + N) of some of the queries on all keys; rows sum to 1."""
        if self.map is not None:
            return self.map[:, :, queries]
        logits = self.q[:, :, queries] * self.scale @ self.k.transpose(-2, -1)
        if self.bias is not None:
            logits = add_bias(logits, self.bias[:, :, queries] if self.bias.shape[2] > 1 else self.bias)
        return logits.softmax(-1)


class Method:
    """A token reduction method: what happens around each block, and the way back to the grid.

    A method is a frozen dataclass of its options and keeps no state; what it learns from an image travels in `Tokens`. Of these functions
    it defines those that it needs. Sizes are plain numbers known from the image's size alone: `schedule` says them beforehand.
    """
    needs_class_token = False  # the first token's attention says what matters
    full_grid = True  # `restore` answers a feature for each patch

    def check(self, model: nn.Module) -> None:
        """Raise ValueError on a model that the options do not fit, such as a location behind its last block."""

    def attach(self, model: nn.Module) -> None:
        """Register the parts that are learned, by their published names."""

    def detach(self, model: nn.Module) -> None:
        """Take them off again."""

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        """N after each block, where there are `num_patches` patches at first."""
        return (num_patches,) * depth

    def want(self, model: nn.Module, i: int) -> str | None:
        """What `mid` needs of block i's attention: 'keys' for queries and keys; 'map' for the whole attention map as well, which fused
        attention does not have; None for nothing: then `mid` is not called, nor the block taken apart unless tokens have sizes."""
        return None

    def start(self, model: nn.Module, tokens: Tokens) -> Tokens:
        """What is embedded -> what goes into the first block."""
        return tokens

    def pre(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        """In front of block i."""
        return tokens

    def mask(self, model: nn.Module, i: int, q: Tensor, k: Tensor, tokens: Tokens) -> tuple[Tensor | None, Tokens]:
        """What is added to the logits of block i, (B or 1, H or 1, P + N or 1, P + N); or a boolean mask of seen keys; or None.

        A query whose mask has no key gets 0 from attention.
        By default each key counts as often as its size says. Called where `want` says something, or tokens have sizes.
        """
        return key_bias(tokens), tokens

    def edit_keys(self, i: int, k: Tensor, v: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, P + N, d) of block i, normalised and rotated, as attention takes them. Called as `mask` is, before it."""
        return k, v

    def softmax(self, i: int, logits: Tensor, tokens: Tokens) -> Tensor:
        """Logits (B, H, P + N, P + N) -> the attention map, where `want` is 'map'."""
        return logits.softmax(-1)

    def edit_map(self, i: int, attention: Tensor) -> Tensor:
        """The attention map (B, H, P + N, P + N) that values are summed by, where `want` is 'map'."""
        return attention

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        """In block i, behind the sum of attention and residual, in front of the MLP."""
        return tokens

    def post(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        """Behind block i."""
        return tokens

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        """Patch features y (B, N, K) of the tokens -> a feature for each position of a grid (B, rows * columns, K), and (rows, columns)."""
        return y, tokens.grid

    def to_pool(self, y: Tensor, tokens: Tokens) -> Tensor:
        """Patch features (B, N, K) -> those whose plain mean is the mean over the image: where tokens count for several patches, a copy for
        each."""
        return y

    def labels(self, tokens: Tokens) -> Tensor:
        """For each patch of the image the present patch token that it is part of, from 0, or -1 where it is part of none: (B, N0).

        For `vitzoo.token_map`. By default a patch is where the `Drop` steps in `history` have left it.
        """
        from .restore import left_by  # which imports this file
        return left_by(tokens)


def add_bias(logits: Tensor, bias: Tensor) -> Tensor:
    """Logits, which nobody else needs, with what `Method.mask` answers; a masked one is the least number there is."""
    if bias.dtype == torch.bool:
        return logits.masked_fill(~bias, torch.finfo(logits.dtype).min)
    return logits.add_(bias)  # in place: another map's memory costs as much as the map


def key_bias(tokens: Tokens) -> Tensor | None:
    """log(size) (B, 1, 1, P + N): a key of that size counts as so many equal ones."""
    return None if tokens.size is None else tokens.size.log()[:, None, None]


def behind_prefix(index: Tensor, num_prefix: int) -> Tensor:
    """Patch tokens (B, K) from 0 on -> rows (B, P + K) of a sequence: all its prefix, and these."""
    if not num_prefix:
        return index
    prefix = torch.arange(num_prefix, device=index.device).expand(index.shape[0], num_prefix)
    return torch.cat([prefix, index + num_prefix], dim=1)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C), (B, K) -> (B, K, C): whole rows at once."""
    B, N = x.shape[:2]
    if B == 1:  # half of the operators
        return x.index_select(1, index[0])
    first = torch.arange(B, device=x.device)[:, None] * N
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).view(*index.shape, x.shape[2])


def take_positions(rope: Tensor, index: Tensor) -> Tensor:
    """(depth or 1, B or 1, H or 1, N, D), (B, K) -> (depth or 1, B, H or 1, K, D)."""
    depth, _, heads, _, dim = rope.shape
    B, K = index.shape
    index = index[None, :, None, :, None].expand(depth, B, heads, K, dim)
    return rope.expand(depth, B, heads, -1, dim).gather(3, index)


def mix_positions(rope: Tensor, weights: Tensor) -> Tensor:
    """Positions of weighted tokens: the mean of sine and cosine, brought back to unit length for each frequency.

    (depth or 1, B or 1, H or 1, N, D), weights (B, K, N), none negative -> (depth or 1, B, H or 1, K, D).
    """
    weights = weights.float() + 1e-30  # where attention underflows all count the same
    weights = weights / weights.sum(-1, keepdim=True)
    return unit_length(weights[:, None].to(rope.dtype) @ rope).to(rope.dtype)


def no_positions(rope: Tensor) -> Tensor:
    """Positions (..., D) that turn nothing, as prefix tokens have."""
    sine, cosine = rope.chunk(2, dim=-1)
    return torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)


def unit_length(rope: Tensor) -> Tensor:
    """Sine and cosine (..., D) of sums of angles, brought back to unit length for each frequency."""
    sine, cosine = rope.chunk(2, dim=-1)
    length = (sine ** 2 + cosine ** 2).clamp_min(1e-12).sqrt()  # in this order: the gradient of a root at 0 is infinite
    return torch.cat([sine / length, cosine / length], dim=-1)
