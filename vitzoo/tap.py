"""Token-aware average pooling in the blocks of timm's vision transformers (https://arxiv.org/abs/2303.11126)."""
from collections.abc import Sequence

import torch
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from .arguments import check_types
from .layers import TokenAwarePooling, check_indices


class Grid:
    """Rows and columns of the patches of the image that is on its way; all poolings of a model share one."""
    size: tuple[int, int] = (0, 0)


class TokenPooling(TokenAwarePooling):
    """`TokenAwarePooling` of the patches among tokens (B, P + N, C); the P prefix tokens stay as they are."""

    def __init__(self, dim: int, num_scales: int, offset: float, num_prefix: int, grid: Grid, **factory_kwargs):
        super().__init__(dim, num_scales, offset, **factory_kwargs)
        self.num_prefix = num_prefix
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        prefix, patches = x[:, :self.num_prefix], x[:, self.num_prefix:]
        height, width = self.grid.size
        if patches.shape[1] != height * width:
            raise ValueError(f'{patches.shape[1]} patches on a grid of {height}x{width}: token-aware pooling needs all patches of the '
                             'image; it does not go with token reduction or patch_drop_rate.')
        pooled = super().forward(patches.unflatten(1, (height, width))).flatten(1, 2)
        return torch.cat([prefix, pooled], dim=1)


# Functions and not closures, so that a copied or unpickled model refers to its own parts.
def _note_grid(patch_embed: nn.Module, args: tuple[Tensor]) -> None:
    patch_embed.tap_grid.size = patch_embed.dynamic_feat_size(args[0].shape[-2:])


def _pool_first(norm: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (norm.tap(args[0]),)


@check_types
def wrap_tap(model: nn.Module, num_scales: int = 4, blocks: Sequence[int] | None = None, offset: float = 0.) -> nn.Module:
    """Put token-aware average pooling in front of norm1 of a vision transformer's blocks, in place.

    No parameter changes its name; the new ones are `blocks.i.norm1.tap.proj.*`. Prefix tokens (class, registers) are not pooled. A model
    that is used by several threads at once must see images of one size in all of them.

    Args:
        model: timm's `VisionTransformer` or `Eva`, at any size.
        num_scales: of `TokenAwarePooling`.
        blocks: which ones, from 0, negative from the end; all by default.
        offset: of `TokenAwarePooling`; 10 lets a pretrained model begin nearly undisturbed.

    Returns:
        The model.

    Raises:
        ValueError: another model, blocks whose norm1 is not the first layer of their attention branch, a block that there is not, or one
            that has it already.
    """
    if not isinstance(model, (VisionTransformer, Eva)):
        raise ValueError(f"model is a {type(model).__name__}: expected timm's VisionTransformer or Eva; put TokenAwarePooling into a model "
                         'of your own, in front of the norm of its attention.')
    chosen = [model.blocks[i] for i in check_indices('blocks', None if blocks is None else list(blocks), len(model.blocks))]
    for block in chosen:
        if not isinstance(block, (Block, EvaBlock)):
            raise ValueError(f'{type(block).__name__} has no norm1 in front of its attention; expected a Block or EvaBlock of timm.')
        if hasattr(block.norm1, 'tap'):
            raise ValueError('the model has token-aware pooling already; build it anew.')
    patch_embed, like = model.patch_embed, next(model.parameters())
    if not hasattr(patch_embed, 'tap_grid'):
        patch_embed.tap_grid = Grid()
        patch_embed.register_forward_pre_hook(_note_grid)
    for block in chosen:
        block.norm1.tap = TokenPooling(model.embed_dim, num_scales, offset, model.num_prefix_tokens, patch_embed.tap_grid,
                                       device=like.device, dtype=like.dtype).train(model.training)
        block.norm1.register_forward_pre_hook(_pool_first)
    return model
