"""STViT-DeiT: Making Vision Transformers Efficient from A Token Sparsification View, Chang et al., CVPR 2023, https://arxiv.org/abs/2303.08685

A DeiT that after a third of its layers goes on with 16 semantic tokens instead of 196 image tokens: spatial pooling proposes
them, two generation layers let them gather what they need from the image tokens, and the rest of the layers is plain attention
among the 16. (STViT-R, the paper's form for Swin, brings the image tokens back between stages; this one drops them.)

A reconstruction: neither code nor weights of the DeiT form were released (https://github.com/changsn/STViT-R has STViT-R-Swin
alone). What each part rests on, and what is open, is in the docstring of `STViTDeiT`.

Shapes: B batch, H W image, h w map of patches, N = h * w image tokens, M semantic tokens (one a window), P positions of a window,
C channels.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Attention, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_function, register_notrace_module
from timm.models.vision_transformer import Block, VisionTransformer

from ..arguments import MOST_PIXELS, check_range, check_types
from ..layers import (
    MOST_BLOCKS,
    Kept,
    attend,
    check_heads,
    check_image,
    check_options,
    check_pair,
    check_rates,
    check_ratios,
    check_token_pool,
    is_plain,
    per_size,
    precision_of,
    record,
    recording,
    resize_table,
    specialize_size,
)
from ..weights.adapt import Positions
from ..weights.files import StateDict
from ..weights.layout import Conversion, Layout
from ._builder import build_model
from ._columnar import Columnar

__all__ = ['STViTDeiT']


class Tokens(NamedTuple):
    """What goes from block to block: image tokens (B, N, C), the size (h, w) of their map, and semantic tokens (B, M, C) or None yet."""
    image: torch.Tensor
    size: tuple[int, int]
    semantic: torch.Tensor | None = None


def window_edges(length: int, count: int) -> list[int]:
    """Where `count` windows begin, and the last one ends, on an axis of `length` positions: as equal as can be, and symmetric
    (but where two windows meet in the middle position).

    14 positions in four windows are 0..2, 3..6, 7..10, 11..13: what remains of four windows of four on the axis padded by one at
    both ends. With fewer positions than windows some are empty.
    """
    def edge(i):  # i * length / count, halves rounded outwards
        return (2 * i * length + count - 1) // (2 * count)
    return [edge(i) if 2 * i <= count else length - edge(count - i) for i in range(count + 1)]


@per_size
def window_tables(h: int, w: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of one size over an h x w map: the image token at each position, and which positions are padding.

    Returns (int64 (M * P,) with N for padding, float32 (M, height, width) with -100 for padding and 0 elsewhere).
    """
    (at_h, in_h), (at_w, in_w) = _axis_table(h, rows), _axis_table(w, cols)
    inside = in_h[:, None, :, None] & in_w[None, :, None, :]
    index = np.where(inside, at_h[:, None, :, None] * w + at_w[None, :, None, :], h * w)
    mask = np.where(inside, np.float32(0), np.float32(-100))
    return index.reshape(-1), mask.reshape(rows * cols, at_h.shape[1], at_w.shape[1])


def _axis_table(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """On one axis, the position of each element of the windows (count, size), and whether it belongs to its window."""
    edges = window_edges(length, count)
    size = max(end - start for start, end in zip(edges[:-1], edges[1:], strict=True))
    at = np.array(edges[:-1])[:, None] + np.arange(size)
    return at, at < np.array(edges[1:])[:, None]


@per_size
def window_of_position(h: int, w: int, rows: int, cols: int) -> np.ndarray:
    """The window that each position of an h x w map lies in, int64 (N,)."""
    row, col = (np.sum(np.arange(length)[:, None] >= np.array(window_edges(length, count)[1:-1], dtype=np.int64), axis=1)
                for length, count in ((h, rows), (w, cols)))
    return (row[:, None] * cols + col).reshape(-1)


@register_notrace_function
def position_table(pos_embed: torch.Tensor, size: tuple[int, int], grid_size: tuple[int, int]) -> torch.Tensor:
    """The table of `grid_size`, resampled if the map has another size."""
    return resize_table(pos_embed, tuple(grid_size), tuple(size), 'bicubic')


def weighted_means(windows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(B, M, P, C) and (B, M, P) -> the mean of each window (B, M, C), weighted with the softmax of its scores."""
    B, M, P, C = windows.shape
    return torch.bmm(scores.softmax(-1).reshape(B * M, 1, P), windows.reshape(B * M, P, C)).reshape(B, M, C)


class SpatialPool(nn.Module):
    """One token for each of rows x cols windows: a mean of the window's image tokens, weighted by learned scores; (B, N, C) -> (B, M, C).

    The score looks at 3x3 positions of its own window (zeros beyond it). Positions of padding get no weight, so that where they lie
    in a window makes no difference.
    """

    def __init__(self, dim: int, grid: tuple[int, int], norm_layer: type[nn.Module], device=None, dtype=None):
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.score = nn.Linear(dim, 1, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        B, N, C = x.shape
        index, mask = window_tables(*size, *self.grid, like=x)
        if recording():
            record(self, 'windows', window_of_position(*size, *self.grid).view(1, *size), len(mask))
        height, width = mask.shape[1:]
        mask = mask.flatten(1)
        windows = F.pad(x, (0, 0, 0, 1)).index_select(1, index).reshape(B * len(mask), height, width, C)
        scores = self.conv(windows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        scores = self.score(self.act(self.norm(scores))).reshape(B, *mask.shape) + mask
        return weighted_means(windows.reshape(B, *mask.shape, C), scores)


class CrossAttention(Attention):
    """timm's attention with queries (B, M, C) and context (B, N, C) apart; where they are the same, it is timm's."""

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(queries, context)
        x = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(queries.shape)))

    def project(self, queries: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, heads, M, d) and twice (B, heads, N, d)."""
        (B, M, C), N = queries.shape, context.shape[1]
        if is_plain(self.qkv, nn.Linear):
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(queries, weight[:C], None if bias is None else bias[:C])
            kv = F.linear(context, weight[C:], None if bias is None else bias[C:])
        else:
            q, kv = self.qkv(torch.cat([queries, context], dim=1)).split([M, N], dim=1)
            q, kv = q[..., :C], kv[..., C:]
        q = q.reshape(B, M, self.num_heads, C // self.num_heads).transpose(1, 2)
        k, v = kv.reshape(B, N, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def weights(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The attention map (B, M, N), mean over the heads."""
        q, k, _ = self.project(queries, context)
        return (q * self.scale @ k.transpose(2, 3)).softmax(-1).mean(1)


class CrossBlock(Block):
    """timm's block with queries and context apart, under the same parameter names; `norm1` serves both."""

    def __init__(self, dim: int, num_heads: int, **kwargs):
        super().__init__(dim, num_heads, **{**kwargs, 'attn_layer': CrossAttention})

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = queries + self.drop_path1(self.ls1(self.attn(self.norm1(queries), self.norm1(context))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


@register_notrace_module
class Generation(CrossBlock):
    """Semantic tokens gather from the image tokens. Both are (B, tokens, C); the image tokens stay as they are.

    The first layer pools the tokens it starts from. The second adds the learned global centres G to them and lets them see each
    other as well; later ones do so without G.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], place: int, norm_layer: type[nn.Module], device=None, dtype=None,
                 **kwargs):
        super().__init__(dim, num_heads, norm_layer=norm_layer, device=device, dtype=dtype, **kwargs)
        self.pool = SpatialPool(dim, grid, norm_layer, device, dtype) if place == 0 else None
        self.centres = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim, device=device, dtype=dtype)) if place == 1 else None
        if self.centres is not None:
            trunc_normal_(self.centres, std=.02)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """Image tokens and semantic tokens (None for the first layer) -> semantic tokens."""
        if self.pool is not None:
            tokens, context = self.pool(image, size), image
        else:
            context = torch.cat([tokens, image], dim=1)
        if self.centres is not None:
            tokens = tokens + self.centres
        if recording():  # who looks at each image token most
            weights = self.attn.weights(self.norm1(tokens), self.norm1(context))[..., -image.shape[1]:]
            record(self, 'semantic tokens', weights.argmax(1).unflatten(1, size), tokens.shape[1])
        return super().forward(tokens, context)


@dataclass(frozen=True)
class FromDeiT(Layout):
    """A DeiT as a start: its class token goes, with the row of the position embedding that belongs to it."""

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        if 'dist_token' in state:
            raise ValueError('This is a distilled DeiT, with a second token and classifier that have no place here. '
                             'Start from one without distillation (timm: deit_*_patch16_224).')
        state, dropped = dict(state), []
        table = state.get('pos_embed')
        if table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 != table.shape[1]:
            state['pos_embed'], dropped = table[:, 1:], ['pos_embed[:, 0]']  # the class token's
        result = super().convert(state, model)
        result.dropped += dropped
        return result


DEIT = FromDeiT(
    name="a plain ViT's checkpoint, such as timm's vit_* and deit_* have",
    marker=r'^cls_token$',
    ours=True,
    rules=((r'^cls_token$', None),),
    new=r'^blocks\.\d+\.(pool\.|centres$|ls\d\.)|^recover\.',
)
# our own names without a recover block, for a model with one, and the reverse
OWN_CLASSIFIER = Layout(
    name='an STViT-DeiT checkpoint: use stvit_deit_tiny, stvit_deit_small or stvit_deit_base',
    marker=r'^blocks\.\d+\.centres$',
    absent=r'^recover\.',
    suits=lambda model: model.recover is not None,
    ours=True,
    new=r'^recover\.',
)
OWN_DENSE = Layout(
    name=OWN_CLASSIFIER.name,
    marker=r'^recover\.',
    suits=lambda model: model.recover is None,
    ours=True,
    rules=((r'^recover\.', None),),
)


class STViTDeiT(Columnar, VisionTransformer):
    """DeiT with semantic tokens (https://arxiv.org/abs/2303.08685), reconstructed: its code was never released.

    Takes images of any height and width from 1x1 on; the map has ceil(H / 16) x ceil(W / 16) patches. With S the semantic tokens, X
    the image tokens after the base layers, MHA pre-norm attention and FFN pre-norm MLP:

        P  = spatial pooling of X
        S1 = P + MHA(P, X, X),                         S1 <- S1 + FFN(S1)
        S2 = (S1 + G) + MHA(S1 + G, [S1, X], [S1, X]),  S2 <- S2 + FFN(S2)

    then ordinary layers on S, final norm, mean over the tokens, linear classifier.

    What this rests on:

    - Confirmed by the published operations: 4 base, 2 generation and 6 semantic layers of DeiT, 16 tokens. They give the published
      1.91 G of the small size, and the ablations' figures for 3 and 4 generation layers and for 3 and 8 base layers.
    - Second hand, from summaries of the paper: the two equations (the released STViT-R has no "P +"); G, a learned (16, C) tensor with
      normal initial values; no class token, mean pooling; no position information on the semantic tokens (of four kinds that were tried
      none was better).
    - Said by the authors in their repository's issues: the pooling (issue 4: map padded by 1 to 16x16, cut into 4x4 windows; for each
      alone depthwise 3x3, LayerNorm, GELU, 1x1 to a score; -100 on padding; softmax; weighted mean), and that G matters here (issue 2).
    - Unknown, left out: the paper's inter-window offset of the pooled centres (equations 4 and 5).
    - Unknown, our choice: that the second layer adds its attention to S1 + G (as the released STViT-R; one summary writes P), the final
      norm before the mean (as in DeiT and STViT-R), the epsilon of the norms (1e-6 as in DeiT), the deviation 0.02 of G's initial values,
      that `norm1` serves queries and context alike (as in STViT-R), and no layer scale (`init_values`).
    - Ours: everything at other sizes than 224. The grid of semantic tokens stays, its windows grow with the map (`window_edges`).
    - Ours: `recover`, and maps of the semantic layers in general.

    Args:
        img_size: the size that the position table is made for; it is resampled for others.
        depth, num_base, num_generation: layers in all, on the image tokens, and for the change to semantic tokens (from 2 on).
        num_semantic: semantic tokens along height and width, one number for both.
        init_values: layer scale in generation and semantic layers. Unknown; None (no scale) as in DeiT. (The released STViT-R has 1e-5.)
        recover: add a block that makes maps of the semantic layers, X + MHA(X, S, S) and an MLP (the recover layer of STViT-R, one for
            all of them). Set when built with `features_only`. Without it a position has the token of its pooling window. The classifier
            does not use it.
        global_pool: 'avg', 'max', 'avgmax', or '' for none.

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (DEIT, OWN_CLASSIFIER, OWN_DENSE)
    features_options = {'recover': True}
    exportable_dynamic_size = 'its windows are made for one size'  # read by vitzoo.export
    why_no_reduction = 'reduces its tokens itself: its later layers work on a few semantic tokens.'  # read by vitzoo.reduction

    @check_types
    def __init__(
            self,
            img_size: int | tuple[int, int] = 224,
            patch_size: int = 16,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dim: int = 384,
            depth: int = 12,
            num_heads: int = 6,
            num_base: int = 4,
            num_generation: int = 2,
            num_semantic: int | tuple[int, int] = 4,
            mlp_ratio: float = 4.,
            qkv_bias: bool = True,
            init_values: float | None = None,
            recover: bool = False,
            drop_rate: float = 0.,
            pos_drop_rate: float = 0.,
            proj_drop_rate: float = 0.,
            attn_drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_options(in_chans, num_classes, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_rates(pos_drop_rate=pos_drop_rate, proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate)
        check_token_pool(global_pool)
        grid = check_pair('num_semantic', num_semantic)
        check_heads(embed_dim, num_heads)
        check_range(1, MOST_BLOCKS, depth=depth)
        check_ratios((embed_dim,), mlp_ratio=mlp_ratio)
        if num_base < 1 or num_generation < 2 or depth < num_base + num_generation:
            raise ValueError(f'depth={depth}, num_base={num_base}, num_generation={num_generation}: expected at least 1 base and 2 '
                             'generation layers, and no more of both than layers in all.')
        check_pair('patch_size', patch_size)
        if min(check_pair('img_size', img_size, MOST_PIXELS)) < patch_size:
            raise ValueError(f'img_size={img_size}, patch_size={patch_size}: expected at least one patch.')

        def make_block(depth: int, **kwargs) -> nn.Module:
            place = depth - num_base
            if place < 0:
                return Block(depth=depth, **{**kwargs, 'init_values': None})
            if place < num_generation:
                return Generation(grid=grid, place=place, depth=depth, **kwargs)
            return Block(depth=depth, **kwargs)

        super().__init__(
            img_size, patch_size, in_chans, num_classes, global_pool, embed_dim, depth, num_heads, mlp_ratio, qkv_bias,
            init_values=init_values, class_token=False, fc_norm=False, dynamic_img_size=True, dynamic_img_pad=True,
            drop_rate=drop_rate, pos_drop_rate=pos_drop_rate, proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate, block_fn=make_block, device=device, dtype=dtype)
        self.grid = grid
        self.recover = None
        if recover:
            self.recover = CrossBlock(
                embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm_layer=type(self.blocks[0].norm1),
                proj_drop=proj_drop_rate, attn_drop=attn_drop_rate, device=device, dtype=dtype)
            self.recover.apply(self._init_weights)

    @property
    def position_tables(self) -> dict[str, Positions]:
        """What files made for another `img_size` are resampled to, and how: as the forward does it."""
        return {'pos_embed': Positions(self.patch_embed.grid_size, lambda table, size, new: position_table(table, new, size))}

    @check_types
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        check_options(num_classes=num_classes)
        check_token_pool(global_pool or '')
        if global_pool is not None:  # set here, as timm would also note an option `fc_norm` for `save_for_hf`, which is none of ours
            self.global_pool = global_pool
        super().reset_classifier(num_classes)

    def embed(self, x: torch.Tensor) -> Tokens:
        """Images (B, C, H, W) -> image tokens (B, N, C) with their positions. Raises ValueError as `check_image` does."""
        check_image(x, self.in_chans, like=precision_of(self))
        specialize_size(x)
        x = self.patch_embed(x)
        size = x.shape[1:3]
        return Tokens(self.pos_drop(x.flatten(1, 2) + position_table(self.pos_embed, size, self.patch_embed.grid_size)), size)

    def forward_block(self, block: nn.Module, state: Tokens) -> Tokens:
        """One block on the image tokens, or on the semantic tokens once there are some."""
        image, size, semantic = state
        if isinstance(block, Generation):
            return Tokens(image, size, self.run(block, image, semantic, size))
        if semantic is None:
            return Tokens(self.run(block, image), size)
        return Tokens(image, size, self.run(block, semantic))

    def to_map(self, state: Tokens) -> torch.Tensor:
        """The image tokens after base layers, (B, N, C); after the others, the semantic tokens on that grid, as `recover` says."""
        image, size, semantic = state
        if semantic is None:
            return image
        if self.recover is not None:
            return self.recover(image, semantic)
        return semantic.index_select(1, window_of_position(*size, *self.grid, like=semantic))

    def forward_kept(self, x: torch.Tensor) -> Kept:
        """Images (B, C, H, W) -> the semantic tokens behind the last block, and the pooling window of each position: for recover layers."""
        image, size, semantic = self.forward_blocks(x)
        return Kept(semantic, size, lambda: window_of_position(*size, *self.grid, like=semantic).expand(image.shape[0], -1))

    def to_tokens(self, state: Tokens) -> torch.Tensor:
        """The semantic tokens (B, M, C) after the final norm; the image tokens, where blocks end before there are any."""
        return self.norm(state.image if state.semantic is None else state.semantic)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop what the given blocks do not need."""
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if not any(isinstance(block, Generation) for block in self.blocks):
            self.recover = None
        return take_indices

    def get_intermediate_layers(
            self, x: torch.Tensor, n: int | list[int] = 1, reshape: bool = False, norm: bool = False) -> list[torch.Tensor]:
        """Maps as `forward_intermediates` gives them, (B, C, h, w) if `reshape`, else (B, N, C)."""
        return self.forward_intermediates(x, n, norm=norm, output_fmt='NCHW' if reshape else 'NLC', intermediates_only=True)


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': None,
        'crop_pct': 0.9, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'patch_embed.proj', 'classifier': 'head', 'license': 'apache-2.0', **kwargs,
    }


def _reconstruction() -> dict:
    return _cfg(description='a reconstruction; no weights were published', paper_ids='arXiv:2303.08685')


default_cfgs = generate_default_cfgs({
    'stvit_deit_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights'),
    'stvit_deit_tiny.untrained': _reconstruction(),
    'stvit_deit_small.untrained': _reconstruction(),
    'stvit_deit_base.untrained': _reconstruction(),
})

VARIANTS = {
    'stvit_deit_micro': dict(embed_dim=128, depth=6, num_heads=4, num_base=2),
    'stvit_deit_tiny': dict(embed_dim=192, depth=12, num_heads=3),
    'stvit_deit_small': dict(embed_dim=384, depth=12, num_heads=6),
    'stvit_deit_base': dict(embed_dim=768, depth=12, num_heads=12),
}


def _create_stvit_deit(variant: str, pretrained: bool, **kwargs) -> STViTDeiT:
    return build_model(STViTDeiT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def stvit_deit_micro(pretrained: bool = False, **kwargs) -> STViTDeiT:
    """Our own, 1.4 M parameters, for tests and tutorials."""
    return _create_stvit_deit('stvit_deit_micro', pretrained, **kwargs)


@register_model
def stvit_deit_tiny(pretrained: bool = False, **kwargs) -> STViTDeiT:
    """STViT-DeiT-T, reconstructed: 5.7 M parameters, 0.52 GMACs."""
    return _create_stvit_deit('stvit_deit_tiny', pretrained, **kwargs)


@register_model
def stvit_deit_small(pretrained: bool = False, **kwargs) -> STViTDeiT:
    """STViT-DeiT-S, reconstructed: 22 M parameters, 1.91 GMACs."""
    return _create_stvit_deit('stvit_deit_small', pretrained, **kwargs)


@register_model
def stvit_deit_base(pretrained: bool = False, **kwargs) -> STViTDeiT:
    """STViT-DeiT-B, reconstructed: 87 M parameters, 7.27 GMACs."""
    return _create_stvit_deit('stvit_deit_base', pretrained, **kwargs)
