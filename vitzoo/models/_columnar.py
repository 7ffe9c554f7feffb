"""What timm asks of a model whose tokens keep one grid from the first block to the last. The families' files hold the computation."""
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn as nn
from timm.models._manipulate import checkpoint

from ..layers import check_choice, check_indices
from ._builder import PublishedWeights


class State(Protocol):
    """What a family hands from block to block: a NamedTuple of its own, of tensors, the size of the grid, and what else it keeps."""
    size: tuple[int, int]


class Columnar(PublishedWeights):
    """Mixin of the columnar families, in front of `nn.Module` or of timm's `VisionTransformer`.

    A family's constructor sets the modules `blocks` (a Sequential) and `norm` (on tokens; an identity where the norm is the head's),
    `grad_checkpointing`, and `feature_info` (`module` is 'blocks.i'), which leaves out blocks at the end that have no map. The family
    defines `embed`, `forward_block`, `to_map`, `to_tokens`, and `forward`: torch.fx seeks the functions that it must not look into in the
    file of `forward`.
    """
    columnar = True
    any_size = True

    @property
    def feature_indices(self) -> tuple[int, ...]:
        """The maps of `features_only` where nobody says which: at a quarter, half, three quarters and the end."""
        return quarters(self._num_maps())

    def embed(self, x: torch.Tensor) -> State:
        """Images (B, C, H, W) -> what goes into the first block. Raises ValueError on an image that the model does not take."""
        raise NotImplementedError

    def forward_block(self, block: nn.Module, state: State) -> State:
        """One block, by `run`."""
        raise NotImplementedError

    def to_map(self, state: State) -> torch.Tensor:
        """A token for each position of the grid, (B, N, C) with N = h * w."""
        raise NotImplementedError

    def to_tokens(self, state: State) -> torch.Tensor:
        """The tokens that the head looks at, (B, T, C), after `norm`."""
        raise NotImplementedError

    def to_prefix(self, state: State) -> torch.Tensor | None:
        """The tokens beside the map that `return_prefix_tokens` asks for, (B, P, C); None in families that have none."""
        return None

    def run(self, block: Callable, *args) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Call a block; with gradient checkpointing it is computed once more in the backward pass."""
        return checkpoint(block, *args) if self.grad_checkpointing else block(*args)

    def forward_blocks(self, x: torch.Tensor) -> State:
        """Images (B, C, H, W) -> what comes out of the last block."""
        state = self.embed(x)
        for block in self.blocks:
            state = self.forward_block(block, state)
        return state

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> tokens (B, T, C), as `to_tokens` says."""
        return self.to_tokens(self.forward_blocks(x))

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            return_prefix_tokens: bool = False,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Maps (B, C, h, w) after the blocks, as `to_map` says.

        Args:
            x: images (B, C, H, W).
            indices: the last n blocks that have maps if int, all of them if None, else these blocks.
            return_prefix_tokens: pairs of map and tokens beside it instead of maps, in families that have such (`to_prefix`).
            norm: apply the final norm to these too, in families where it does not act on pooled tokens.
            stop_early: stop after the last block asked for.
            output_fmt: 'NCHW', 'NHWC', or 'NLC' for tokens (B, N, C).
            intermediates_only: return the maps alone, else (final tokens as of `forward_features`, maps).

        Raises:
            ValueError: another format, a block that has no map, or an image that `embed` refuses.
        """
        check_choice('output_fmt', output_fmt, 'NCHW', 'NHWC', 'NLC')
        take_indices = check_indices('indices', indices, self._num_maps())
        state = self.embed(x)
        intermediates = []
        for i, block in enumerate(self.blocks[:max(take_indices) + 1] if stop_early else self.blocks):
            state = self.forward_block(block, state)
            if i in take_indices:
                y, prefix = self.to_map(state), self.to_prefix(state) if return_prefix_tokens else None
                if norm:
                    y, prefix = self.norm(y), prefix if prefix is None else self.norm(prefix)
                y = lay_out(y, state.size, output_fmt)
                intermediates.append(y if prefix is None else (y, prefix))
        if intermediates_only:
            return intermediates
        return self.to_tokens(state), intermediates

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop what the given blocks do not need."""
        take_indices = check_indices('indices', indices, self._num_maps())
        self.blocks = self.blocks[:max(take_indices) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, '')
        return take_indices

    def _num_maps(self) -> int:
        return min(len(self.feature_info), len(self.blocks))


def lay_out(tokens: torch.Tensor, size: tuple[int, int], output_fmt: str) -> torch.Tensor:
    """Tokens (B, N, C) of a map of this size as they are ('NLC'), as (B, h, w, C) ('NHWC') or (B, C, h, w) ('NCHW')."""
    if output_fmt == 'NLC':
        return tokens
    y = tokens.unflatten(1, size)
    return y if output_fmt == 'NHWC' else y.permute(0, 3, 1, 2).contiguous()


def quarters(num_maps: int) -> tuple[int, ...]:
    """The blocks at whose ends a quarter, half, three quarters and all of the maps are: what `features_only` taps."""
    return tuple(sorted({-(-num_maps * k // 4) - 1 for k in (1, 2, 3, 4)}))
