"""LookupViT: Compressing visual information to a limited number of tokens, Koner et al., ECCV 2024, https://arxiv.org/abs/2407.12753

Two token sets for each image. A few compressed tokens read from the full grid of lookup tokens by cross-attention, pass a plain ViT
block, and write back through the same attention map, transposed; the many lookup tokens get a narrow MLP alone. Nothing is quadratic
in the number of lookup tokens, and the number of compressed tokens may change after training.

Built from the paper's description: neither code nor weights were published. What each part rests on, and what is open, is in the
docstring of `LookupViT`.

Shapes: B batch, H W image, h w map of patches, N = h * w lookup tokens, M compressed tokens, D channels, heads with d channels each.
"""
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    LayerNorm,
    Mlp,
    PatchEmbed,
    calculate_drop_path_rates,
    global_pool_nlc,
    trunc_normal_,
)
from timm.models import generate_default_cfgs, register_model, register_notrace_function
from timm.models._input import update_model_args
from timm.models._manipulate import named_apply
from timm.models.vision_transformer import Block as RefineBlock

from ..arguments import MOST_PIXELS, as_type, check_range, check_types
from ..layers import (
    MOST_BLOCKS,
    SequenceFirstAttention,
    attention_map,
    check_choice,
    check_heads,
    check_image,
    check_options,
    check_pair,
    check_ratios,
    check_token_pool,
    heads_of_sequence,
    is_plain,
    is_plain_attention,
    linear_of,
    precision_of,
    record,
    recording,
    require_bare,
    require_plain,
    resize_table,
    resize_tokens,
    sequence_of_heads,
    specialize_size,
    swap_first,
)
from ..weights.adapt import Positions
from ..weights.files import StateDict
from ..weights.layout import Conversion, Layout
from ._builder import build_model
from ._columnar import Columnar

__all__ = ['LookupViT']

Size = tuple[int, int]


class Tokens(NamedTuple):
    """What goes from block to block: C (B, M, D), L (B, N, D), and the size (h, w) of the map that L is.

    After `deploy`, C is (M, B, D), and L (N, B, D) with what was added `ahead`, (D,).
    """
    compressed: torch.Tensor
    lookup: torch.Tensor
    size: Size
    ahead: torch.Tensor | None = None


@register_notrace_function
def pad_to_patches(x: torch.Tensor, patch_size: Size) -> torch.Tensor:
    """Zeros at the right and bottom up to whole patches."""
    pad_h, pad_w = -x.shape[2] % patch_size[0], -x.shape[3] % patch_size[1]
    return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x


@register_notrace_function
def make_tokens(
        features: torch.Tensor,
        pos_embed: torch.Tensor,
        pos_compressed: torch.Tensor,
        grid_size: Size,
        table_size: Size,
        size: Size,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features (B, D, h, w) -> compressed tokens (B, M, D), lookup tokens (B, N, D), each with its own positions.

    grid_size and table_size are those of the two position tables, size that of the compressed map.
    """
    h, w = features.shape[2:]
    features = features.flatten(2).transpose(1, 2).contiguous()
    lookup = features + resize_table(pos_embed, grid_size, (h, w), 'bicubic')
    compressed = resize_tokens(features, (h, w), size)
    return compressed + resize_table(pos_compressed, table_size, size, 'bilinear'), lookup


def stack_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, T, D) -> (B * heads, T, d)."""
    B, T, D = x.shape
    return x.view(B, T, num_heads, D // num_heads).transpose(1, 2).contiguous().view(B * num_heads, T, D // num_heads)


def unstack_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B * heads, T, d) -> (B, T, D)."""
    T, d = x.shape[1:]
    B = x.shape[0] // num_heads
    return x.view(B, num_heads, T, d).transpose(1, 2).contiguous().view(B, T, num_heads * d)


def cheaper_by_token(M: int, N: int, D: int, num_heads: int) -> bool:
    """Whether all D channels mixed by the maps of the heads and then projected cost less than the reverse order."""
    return num_heads * N * M + M * D < N * D + N * M


class Gather(nn.Module):
    """Compressed tokens look up: cross-attention from C (B, M, D) to L (B, N, D).

    Returns what C gains, (B, M, D), and the attention map (B, heads, M, N), whose rows sum to 1.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, pre_norm: bool, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.reorder = False
        self.norm = LayerNorm(dim, **dd) if pre_norm else nn.Identity()
        self.norm_lookup = LayerNorm(dim, **dd) if pre_norm else nn.Identity()
        # separate, since the norm of the keys would first copy them out of a joint projection
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.q_norm = LayerNorm(dim, **dd)
        self.k_norm = LayerNorm(dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, compressed: torch.Tensor, lookup: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (B, M, D), N = compressed.shape, lookup.shape[1]
        lookup = self.norm_lookup(lookup)
        q = self.q_norm(self.q(self.norm(compressed)))
        q = stack_heads(q if self.scale == 1 else q * self.scale, self.num_heads)
        k = stack_heads(self.k_norm(self.k(lookup)), self.num_heads)
        attention = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        if self.reorder and cheaper_by_token(M, N, D, self.num_heads) and is_plain(self.v, nn.Linear):
            gathered = self._gather_then_project(attention.view(B, self.num_heads * M, N), lookup)
        else:
            gathered = unstack_heads(torch.bmm(attention, stack_heads(self.v(lookup), self.num_heads)), self.num_heads)
        return self.proj(gathered), attention.view(B, self.num_heads, M, N)

    def _gather_then_project(self, attention: torch.Tensor, lookup: torch.Tensor) -> torch.Tensor:
        """A (L Wv) as (A L) Wv: the value projection, without its bias, acts on M tokens a head instead of all N; (B, M, D)."""
        B, D = lookup.shape[0], lookup.shape[2]
        M = attention.shape[1] // self.num_heads
        x = torch.bmm(attention, lookup).view(B, self.num_heads, M, D)
        x = x.transpose(0, 1).contiguous().view(self.num_heads, B * M, D)
        x = torch.bmm(x, self.v.weight.view(self.num_heads, D // self.num_heads, D).transpose(1, 2))  # (heads, B * M, d)
        return x.view(self.num_heads, B, M, D // self.num_heads).permute(1, 2, 0, 3).contiguous().view(B, M, D)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold the scale and the bias of the values into their neighbours, and multiply in the cheaper order (inference only)."""
        require_plain(nn.Linear, self.v, self.proj)
        require_bare(self.q_norm)
        if self.scale != 1:
            for parameter in self.q_norm.parameters():
                parameter *= self.scale
            self.scale = 1
        if self.v.bias is not None:  # rows of the attention sum to 1
            self.proj.bias += self.proj.weight @ self.v.bias
            self.v.bias = None
        self.reorder = True
        return self


class Infuse(nn.Module):
    """Lookup tokens take back: what L (B, N, D) gains from C (B, M, D) through the attention map of `Gather`.

    The map is transposed and not normalised again: its columns sum to M / N on average, so that the update is small by construction.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, pre_norm: bool, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.reorder = False
        self.norm = LayerNorm(dim, **dd) if pre_norm else nn.Identity()
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v_norm = LayerNorm(dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, compressed: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        (B, M, D), N = compressed.shape, attention.shape[3]
        v = self.v_norm(self.v(self.norm(compressed)))
        if self.reorder and cheaper_by_token(M, N, D, self.num_heads) and is_plain(self.proj, nn.Linear):
            return self._project_then_spread(v, attention.view(B, self.num_heads * M, N))
        spread = torch.bmm(attention.view(B * self.num_heads, M, N).transpose(1, 2), stack_heads(v, self.num_heads))
        return self.proj(unstack_heads(spread, self.num_heads))

    def _project_then_spread(self, v: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """(A^T V) O as A^T (V O): the output projection acts on M tokens a head instead of all N."""
        B, M, D = v.shape
        v = v.view(B * M, self.num_heads, D // self.num_heads).transpose(0, 1)
        weight = self.proj.weight.view(D, self.num_heads, D // self.num_heads).permute(1, 2, 0)  # (heads, d, D)
        v = torch.bmm(v, weight).view(self.num_heads, B, M, D).transpose(0, 1).contiguous().view(B, self.num_heads * M, D)
        return torch.baddbmm(self.proj.bias, attention.transpose(1, 2), v)

    def fuse(self) -> nn.Module:
        """Multiply in the cheaper order (inference only)."""
        self.reorder = True
        return self


def linears(weights: Iterable[torch.Tensor]) -> nn.ModuleList:
    """Weights (o, i) as layers without bias. Quantisation tools give each its scale, and fail at a stack of matrices."""
    return nn.ModuleList(linear_of(weight.contiguous()) for weight in weights)


class SequenceFirstGather(nn.Module):
    """`Gather` after `fuse`, on compressed tokens (M, B, D) and lookup tokens (N, B, D): (M, B, D) and the map (B, heads, M, N)."""

    def __init__(self, gather: Gather):
        super().__init__()
        require_plain(nn.Linear, gather.v)
        self.num_heads = gather.num_heads
        for name in 'norm', 'norm_lookup', 'q', 'k', 'v', 'q_norm', 'k_norm', 'proj':
            self.add_module(name, getattr(gather, name))
        self.v_by_head = linears(self.v.weight.chunk(self.num_heads))

    def forward(self, compressed: torch.Tensor, lookup: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (M, _, D), N = compressed.shape, lookup.shape[0]
        lookup = self.norm_lookup(lookup)
        attention = attention_map(self.q_norm(self.q(self.norm(compressed))), self.k_norm(self.k(lookup)), self.num_heads)
        if cheaper_by_token(M, N, D, self.num_heads):
            x = torch.matmul(attention.flatten(1, 2), lookup.transpose(0, 1)).split(M, dim=1)  # of each head (B, M, D)
            gathered = torch.cat([v(y) for v, y in zip(self.v_by_head, x, strict=True)], dim=2)
            gathered = swap_first(gathered)
        else:
            gathered = sequence_of_heads(torch.matmul(attention, heads_of_sequence(self.v(lookup), self.num_heads)))
        return self.proj(gathered), attention


class SequenceFirstInfuse(nn.Module):
    """`Infuse` on compressed tokens (M, B, D) and the map (B, heads, M, N): what the lookup tokens gain, (N, B, D)."""

    def __init__(self, infuse: Infuse):
        super().__init__()
        require_plain(nn.Linear, infuse.proj)
        self.num_heads = infuse.num_heads
        for name in 'norm', 'v', 'v_norm', 'proj':
            self.add_module(name, getattr(infuse, name))
        self.proj_by_head = linears(self.proj.weight.chunk(self.num_heads, dim=1))

    def forward(self, compressed: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        (M, _, D), N = compressed.shape, attention.shape[3]
        v = self.v_norm(self.v(self.norm(compressed)))
        if not cheaper_by_token(M, N, D, self.num_heads):
            return self.proj(sequence_of_heads(torch.matmul(attention.transpose(2, 3), heads_of_sequence(v, self.num_heads))))
        v = torch.cat([proj(y) for proj, y in zip(self.proj_by_head, v.chunk(self.num_heads, dim=2), strict=True)])  # (heads * M, B, D)
        spread = torch.matmul(attention.flatten(1, 2).transpose(1, 2), v.transpose(0, 1))  # (B, N, D)
        return swap_first(spread if self.proj.bias is None else spread + self.proj.bias)


class ConvStem(nn.Module):
    """Images (B, in_chans, H, W) to (B, dim, H / stride, W / stride): 3x3 convolutions of stride 2 that double the width, and one more."""

    def __init__(self, in_chans: int, dim: int, stride: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.patch_size = (stride, stride)
        dims = [in_chans, *(dim >> i for i in reversed(range(stride.bit_length() - 1)))]
        self.stem = nn.Sequential(*(nn.Sequential(OrderedDict(
            conv=nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, bias=False, **dd),
            bn=nn.BatchNorm2d(out_dim, **dd),  # without an activation in it, which tools that replace batch norms would drop
            act=nn.GELU())) for in_dim, out_dim in zip(dims[:-1], dims[1:], strict=True)))
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.stem(x))


class Block(nn.Module):
    """Gather, refine (a plain ViT block on C), infuse, lookup MLP: C (B, M, D) and L (B, N, D) in and out.

    Without `writes` the block ends after its second step and L passes unchanged.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, lookup_mlp_ratio: float, qkv_bias: bool, pre_norm: bool,
                 drop_path: float, writes: bool, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        cross = dict(dim=dim, num_heads=num_heads, qkv_bias=qkv_bias, pre_norm=pre_norm, **dd)
        self.writes = writes
        self.ahead = None  # see `add_ahead`
        self.gather = Gather(**cross)
        self.refine = RefineBlock(dim, num_heads, mlp_ratio, qkv_bias, drop_path=drop_path, **dd)
        if writes:
            self.infuse = Infuse(**cross)
            self.norm = LayerNorm(dim, **dd)
            self.mlp = Mlp(dim, round(dim * lookup_mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, compressed: torch.Tensor, lookup: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gathered, attention = self.gather(compressed, lookup)
        if recording():  # who looks at each position most
            record(self, 'compressed tokens', attention.mean(1).argmax(1), attention.shape[2])
        compressed = self.refine(compressed + self.drop_path(gathered))
        if self.writes:
            lookup = lookup + self.drop_path(self.infuse(compressed, attention))
            lookup = lookup + self.drop_path(self.mlp(self.norm(lookup)))
        return compressed, lookup


@torch.no_grad()
def add_ahead(writer: nn.Parameter, block: Block) -> torch.Tensor | None:
    """Let lookup tokens bring the bias of a block's infusion along, as part of another that is added before: saves a pass over them.

    The block's projections take it off the tokens that they read; that of the values by the gather's last bias, since rows of the map sum
    to 1. Returns what the tokens bring (D,); None if the block reads or writes them otherwise.
    """
    gather = block.gather
    if not (block.writes and type(gather.norm_lookup) is nn.Identity and is_plain(gather.k, nn.Linear) and gather.k.bias is not None):
        return None
    bias, block.infuse.proj.bias = block.infuse.proj.bias, None
    writer += bias
    gather.k.bias -= gather.k.weight @ bias
    gather.proj.bias -= gather.proj.weight @ (gather.v.weight @ bias)
    return bias.detach()


@dataclass(frozen=True)
class FromViT(Layout):
    """A plain ViT (or DeiT) as a start: its blocks refine, and the projections of the same layer's attention look up."""

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        state, extra, dropped = dict(state), {}, []
        table = state.get('pos_embed')
        if table is not None and table.ndim == 3:
            prefix = table.shape[1] - math.isqrt(table.shape[1]) ** 2  # of tokens that are at no position
            if prefix:
                dropped = [f'pos_embed[:, :{prefix}]']
            state['pos_embed'] = extra['pos_compressed'] = table[:, prefix:]  # resampled to each size later, as all positions are
        for i in range(len(model.blocks)):
            for kind in ('weight', 'bias'):
                qkv = state.get(f'blocks.{i}.attn.qkv.{kind}')
                if qkv is not None and qkv.ndim and qkv.shape[0] % 3 == 0:
                    extra |= {f'blocks.{i}.gather.{part}.{kind}': x for part, x in zip('qkv', qkv.chunk(3), strict=True)}
        result = super().convert(state, model)
        result.state |= extra
        result.new = [name for name in result.new if name not in extra]
        result.dropped += dropped
        return result


VIT = FromViT(
    name="a plain ViT's checkpoint, such as timm's vit_* and deit_* have",
    marker=r'^blocks\.0\.attn\.qkv\.weight$',
    absent=r'^blocks\.\d+\.centres$',  # STViT-DeiT's
    rules=(
        (r'^(cls_token|dist_token|reg_token|norm|fc_norm|head|head_dist)(\.|$)', None),
        (r'^(blocks\.\d+)\.(norm1|attn|norm2|mlp)\.', r'\1.refine.\2.'),
    ),
    new=r'^(fc_norm|head)(_lookup)?\.|^blocks\.\d+\.(gather\.(proj|q_norm|k_norm|norm|norm_lookup)|infuse|norm|mlp)\.',
)


# Once all convolutions of the stem were called `proj`, where tools expect a layer.
_STEM_RULES = ((r'^patch_embed\.proj\.(\d+)\.(conv|bn)\.', r'patch_embed.stem.\1.\2.'), (r'^patch_embed\.proj\.\d+\.', 'patch_embed.proj.'))


@dataclass(frozen=True)
class OfTwoHeads(Layout):
    """Our own names with both heads, for a model that classifies the compressed tokens alone: its last block writes nothing back."""

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        idle = '|'.join(str(i) for i, block in enumerate(model.blocks) if not block.writes)
        rules = (r'^(fc_norm|head)_lookup\.', None), (rf'^blocks\.({idle})\.(infuse|norm|mlp)\.', None)
        return Layout(self.name, self.marker, rules=(*_STEM_RULES, *rules)).convert(state, model)


TWO_HEADS = OfTwoHeads(
    name='a LookupViT checkpoint: use lookupvit_tiny_patch16, lookupvit_small_patch16, lookupvit_base_patch16 or lookupvit_large_patch16',
    marker=r'^head_lookup\.',
    own_marker=r'^blocks\.\d+\.gather\.',
    suits=lambda model: not model.two_heads,
    ours=True,
)
FORMER_STEM = Layout(
    name=TWO_HEADS.name,
    marker=r'^patch_embed\.proj\.0\.conv\.',
    ours=True,
    rules=_STEM_RULES,
)


class LookupViT(Columnar, nn.Module):
    """LookupViT (https://arxiv.org/abs/2407.12753), built from the paper's description.

    Takes images of any height and width from 1x1 on; lookup tokens are a map of ceil(H / 16) x ceil(W / 16). With F the patch features,
    C the compressed tokens, L the lookup tokens, LN layer norm and A of every head:

        L = F + pos_embed,  C = resize(F) + pos_compressed
        in every block:
          A = softmax(LN(Wq C) LN(Wk L)^T / sqrt(d)),  C <- C + O1 A Wv L             gather
          C <- C + MHSA(LN C),  C <- C + MLP(LN C)                                     refine
          L <- L + O2 A^T LN(Wv' C)                                                    infuse
          L <- L + MLP'(LN L)                                                          lookup MLP
        logits = (head(LN(mean C)) + head_lookup(LN(mean L))) / 2

    What this rests on (the paper's full text was not at hand when this was written):

    - Read in the paper's abstract: two token sets and their exchange; the number of compressed tokens is free at inference.
    - Read in summaries of the paper: the four steps of a block; the non-learned resize; that A is used again as it is, transposed;
      several resolutions in training.
    - Two or three third-party re-implementations agree: LN after the projections of Q and K and none on V, LN on V'; separate position
      tables; MLP ratios 4 and 1/2; sizes 3, 5, 7 and 10.
    - From memory of the paper, not read again: bilinear resize of F before positions are added; own V' and O2 of the infusion; one
      classifier for each token set on its mean, logits averaged, no class token.
    - Open, our choice: output projections O1 and O2, no norm in front of the exchange (`pre_norm`), an antialiased resize of F, one
      `pos_compressed` table for all sizes, plain patch embedding (`stem`), the exact GELU, LN after pooling, sizes drawn with equal
      probability.
    - Ours: other image sizes (`pos_embed` is resampled, bicubic), and using the lookup tokens as feature maps.

    Args:
        img_size: image size that `pos_embed` is made for.
        stem: F by 'patch', one convolution as of a ViT, or by 'conv', convolutions of stride 2 with batch norm (after arXiv:2106.14881, but
            the last is 3x3 as well), which learn faster from few images; then patch_size is a power of two.
        compressed_size: rows and columns of the compressed tokens' grid, one number for both. See `set_compressed_size`.
        train_sizes: compressed sizes to draw from at every training step, such as (3, 5, 7, 10); None for `compressed_size` alone. In eval
            mode `compressed_size` counts. See `draw_compressed_size`.
        mlp_ratio, lookup_mlp_ratio: hidden width of the MLPs of compressed and lookup tokens, as a share of embed_dim.
        pre_norm: norms on C and L in front of the projections to Q, K, V and V' as well.
        pos_std: standard deviation that the positions start with. ViT's 0.02 is little beside features of about 1; short training from
            scratch wants more.
        head: 'both'; or 'compressed' for a classifier on the compressed tokens alone, which has neither infusion nor lookup MLP in the last
            block (nor feature maps of it).
        global_pool: of each token set, 'avg', 'max', 'avgmax', or '' for none (without classes).

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (VIT, TWO_HEADS, FORMER_STEM)
    exportable_dynamic_size = 'its position tables are resampled for one size'  # read by vitzoo.export
    why_no_reduction = 'reduces its tokens itself: its heavy layers work on a few compressed tokens.'  # read by vitzoo.reduction

    @check_types
    def __init__(
            self,
            img_size: int | Size = 224,
            patch_size: int | Size = 16,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dim: int = 384,
            depth: int = 12,
            num_heads: int = 6,
            stem: str = 'patch',
            compressed_size: int | Size = 5,
            train_sizes: Sequence[int | Size] | None = None,
            mlp_ratio: float = 4.,
            lookup_mlp_ratio: float = 0.5,
            qkv_bias: bool = True,
            pre_norm: bool = False,
            pos_std: float = 0.02,
            head: str = 'both',
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        check_options(in_chans, num_classes, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_token_pool(global_pool, num_classes)
        check_choice('head', head, 'both', 'compressed')
        img_size, patch_size = check_pair('img_size', img_size, MOST_PIXELS), check_pair('patch_size', patch_size)
        check_heads(embed_dim, num_heads)
        check_range(1, MOST_BLOCKS, depth=depth)
        check_ratios((embed_dim,), mlp_ratio=mlp_ratio, lookup_mlp_ratio=lookup_mlp_ratio)
        check_choice('stem', stem, 'patch', 'conv')
        if stem == 'conv' and (patch_size[0] != patch_size[1] or patch_size[0].bit_count() != 1 or not 2 <= patch_size[0] <= 2 * embed_dim):
            raise ValueError(f"stem='conv', patch_size={patch_size}: expected a power of two, from 2 to twice embed_dim={embed_dim}.")
        check_range(1e-6, 1000, pos_std=pos_std)
        if train_sizes == ():
            raise ValueError(f'train_sizes={train_sizes}: expected compressed sizes to draw from, or None.')

        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.embed_dim = self.head_hidden_size = embed_dim
        self.two_heads = head == 'both'
        self.grad_checkpointing = False
        self.separate_logits = False
        self.compressed_size = check_pair('compressed_size', compressed_size)
        self.train_sizes = train_sizes and tuple(check_pair('train_sizes', size) for size in train_sizes)
        self.drawn_size = None
        self.token_axis = 1  # 0 after `deploy`
        self.grid_size = tuple(-(-n // p) for n, p in zip(img_size, patch_size, strict=True))
        self.table_size = tuple(max(n) for n in zip(self.compressed_size, *(self.train_sizes or ()), strict=True))

        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid_size), embed_dim, **dd))
        self.pos_compressed = nn.Parameter(torch.empty(1, math.prod(self.table_size), embed_dim, **dd))
        if stem == 'conv':
            self.patch_embed = ConvStem(in_chans, embed_dim, patch_size[0], **dd)
        else:
            self.patch_embed = PatchEmbed(
                tuple(n * p for n, p in zip(self.grid_size, patch_size, strict=True)), patch_size, in_chans, embed_dim,
                flatten=False, strict_img_size=False, **dd)
        self._traits = {'first_conv': 'patch_embed.proj' if stem == 'patch' else 'patch_embed.stem.0.conv'}  # read by whoever loads weights
        self.blocks = nn.Sequential(*(
            Block(embed_dim, num_heads, mlp_ratio, lookup_mlp_ratio, qkv_bias, pre_norm, rate, writes=self.two_heads or i < depth - 1, **dd)
            for i, rate in enumerate(calculate_drop_path_rates(drop_path_rate, depth))))
        self.feature_info = [dict(num_chs=embed_dim, reduction=max(patch_size), module=f'blocks.{i}')
                             for i, block in enumerate(self.blocks) if block.writes]
        self.norm = nn.Identity()  # the norms act on pooled tokens
        self.head_drop = nn.Dropout(drop_rate)
        self.build_head(**dd)
        self._init_weights(pos_std)

    def _init_weights(self, pos_std: float) -> None:
        def init(module: nn.Module, name: str) -> None:
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

        named_apply(init, self)
        for table in self.pos_embed, self.pos_compressed:
            trunc_normal_(table, std=pos_std)

    def build_head(self, device=None, dtype=None) -> None:
        """A norm and a classifier for each token set that is classified; a norm only where there is something to pool."""
        for suffix in ('', '_lookup') if self.two_heads else ('',):
            norm, dd = getattr(self, f'fc_norm{suffix}', None), {'device': device, 'dtype': dtype}
            if not self.global_pool:
                norm = nn.Identity()
            elif not isinstance(norm, LayerNorm):
                norm = LayerNorm(self.num_features, **dd).train(self.training)
            head = nn.Linear(self.num_features, self.num_classes, **dd) if self.num_classes else nn.Identity()
            self.add_module(f'fc_norm{suffix}', norm)
            self.add_module(f'head{suffix}', head.train(self.training))

    def set_compressed_size(self, size: int | Size) -> None:
        """Use another number of compressed tokens from now on: rows and columns of their grid, one number for both.

        What is saved by `timm.models.save_for_hf` is built with that number.

        Raises ValueError unless both are positive.
        """
        self.compressed_size = check_pair('compressed_size', as_type('compressed_size', size, int | Size))
        update_model_args(self, compressed_size=self.compressed_size)

    @property
    def position_tables(self) -> dict[str, Positions]:
        """What files made for another `img_size` or `compressed_size` are resampled to, and how: as the forward does it."""
        return {'pos_embed': Positions(self.grid_size, partial(resize_table, kernel='bicubic')),
                'pos_compressed': Positions(self.table_size, partial(resize_table, kernel='bilinear'))}

    def draw_compressed_size(self) -> Size:
        """Draw one of `train_sizes`, which the following training steps use; follows `torch.manual_seed`.

        A training forward draws by itself until this was called once. A compiled model cannot: call this before each step, which compiles
        one graph a size. So does a program that wants the same size on several devices, or with accumulated gradients.

        Raises ValueError without train_sizes.
        """
        if not self.train_sizes:
            raise ValueError('train_sizes=None: there is nothing to draw from; build the model with train_sizes=(3, 5, 7, 10), say.')
        self.drawn_size = self._draw()
        return self.drawn_size

    def _draw(self) -> Size:
        return self.train_sizes[int(torch.randint(len(self.train_sizes), (), device='cpu'))]

    def _current_size(self) -> Size:
        if not self.training or not self.train_sizes:
            return self.compressed_size
        if self.drawn_size is None and torch.compiler.is_compiling():
            raise ValueError(f'train_sizes={self.train_sizes}: a compiled model cannot draw from them; call draw_compressed_size() before '
                             'each training step.')
        return self.drawn_size or self._draw()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'pos_embed', 'pos_compressed'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return dict(stem=r'^pos_embed|^pos_compressed|^patch_embed', blocks=[(r'^blocks\.(\d+)', None), (r'^fc_norm', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def set_separate_logits(self, enable: bool = True) -> None:
        """In training mode answer with the logits of both token sets, (compressed, lookup), for a loss on each.

        Raises ValueError with head='compressed'.
        """
        if enable and not self.two_heads:
            raise ValueError("head='compressed': there are no other logits; build the model with head='both'.")
        self.separate_logits = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return (self.head, self.head_lookup) if self.two_heads else self.head

    @check_types
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        check_options(num_classes=num_classes)
        global_pool = self.global_pool if global_pool is None else global_pool
        check_token_pool(global_pool, num_classes)
        self.num_classes = num_classes
        self.global_pool = global_pool
        like = self.pos_embed
        self.build_head(like.device, like.dtype)

    def embed(self, x: torch.Tensor) -> Tokens:
        """Images (B, C, H, W) -> compressed tokens (B, M, D) and lookup tokens (B, N, D). Raises ValueError as `check_image` does."""
        check_image(x, self.in_chans, like=precision_of(self))
        specialize_size(x)
        features = self.patch_embed(pad_to_patches(x, self.patch_embed.patch_size))
        compressed, lookup = make_tokens(
            features, self.pos_embed, self.pos_compressed, self.grid_size, self.table_size, self._current_size())
        return Tokens(compressed.transpose(1, self.token_axis), lookup.transpose(1, self.token_axis), features.shape[2:])

    def forward_block(self, block: nn.Module, state: Tokens) -> Tokens:
        compressed, lookup = self.run(block, state.compressed, state.lookup)
        return Tokens(compressed, lookup, state.size, block.ahead)

    def to_map(self, state: Tokens) -> torch.Tensor:
        """The lookup tokens, (B, N, D)."""
        lookup = state.lookup if state.ahead is None else state.lookup - state.ahead
        return lookup.transpose(1, self.token_axis)

    def to_tokens(self, state: Tokens) -> torch.Tensor:
        """(B, M + N, D), compressed tokens first; with head='compressed' those alone, (B, M, D)."""
        compressed = self.to_prefix(state)
        return torch.cat([compressed, self.to_map(state)], dim=1) if self.two_heads else compressed

    def to_prefix(self, state: Tokens) -> torch.Tensor:
        """The compressed tokens, (B, M, D)."""
        return state.compressed.transpose(1, self.token_axis)

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop what the given blocks do not need; the norms go with the classifiers, and both with the blocks that they were made for."""
        depth = len(self.blocks)
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_norm or len(self.blocks) < depth:
            self.reset_classifier(0, '')
        return take_indices

    def classify(self, compressed: torch.Tensor, lookup: torch.Tensor, pre_logits: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Pool, normalise and classify each token set; the mean of both logits, or of both normalised pools if `pre_logits`."""
        results = []
        sets = [(compressed, self.fc_norm, self.head)]
        if self.two_heads:
            sets.append((lookup, self.fc_norm_lookup, self.head_lookup))
        for tokens, norm, head in sets:
            pooled = self.head_drop(norm(global_pool_nlc(tokens, self.global_pool, num_prefix_tokens=0)))
            results.append(pooled if pre_logits else head(pooled))
        if self.separate_logits and self.training and not pre_logits:
            return tuple(results)
        return (results[0] + results[1]) / 2 if self.two_heads else results[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False, num_compressed: int | None = None) -> torch.Tensor:
        """Tokens of `forward_features` -> logits.

        Args:
            x: tokens (B, M + N, D).
            pre_logits: stop in front of the classifiers; the mean over both token sets of the normalised pools (B, D).
            num_compressed: M, where it is not that of the current size.

        Raises:
            ValueError: if sizes are drawn, and num_compressed is not given.
        """
        if not self.global_pool:
            return x
        if num_compressed is None and self.two_heads:
            if self.training and self.train_sizes and self.drawn_size is None:
                raise ValueError('num_compressed=None: expected the number of compressed tokens in training mode, where each forward draws '
                                 'it; or call draw_compressed_size() before.')
            num_compressed = math.prod(self._current_size())
        if not self.two_heads:
            return self.classify(x, x, pre_logits)
        return self.classify(x[:, :num_compressed], x[:, num_compressed:], pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        state = self.forward_blocks(x)
        return self.classify(self.to_prefix(state), self.to_map(state)) if self.global_pool else self.to_tokens(state)

    def deploy(self, runtime: str) -> nn.Module:
        """Tokens (T, B, D) in the blocks, as `layers.sequence_first` explains; as it is if somebody's layers attend among the tokens.

        Raises ValueError if a layer that the exchange reads is more than its weight.
        """
        if all(is_plain_attention(block.refine.attn) for block in self.blocks):
            self.token_axis = 0
            for block in self.blocks:
                block.gather = SequenceFirstGather(block.gather)
                block.refine.attn = SequenceFirstAttention(block.refine.attn)
                if block.writes:
                    block.infuse = SequenceFirstInfuse(block.infuse)
            add_ahead(self.pos_embed, self.blocks[0])
            for before, block in itertools.pairwise(self.blocks):
                if is_plain(before.mlp, Mlp) and is_plain(before.mlp.fc2, nn.Linear):
                    before.ahead = add_ahead(before.mlp.fc2.bias, block)
        return self


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': None,
        'crop_pct': 0.9, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'patch_embed.proj', 'classifier': ('head', 'head_lookup'), 'license': 'apache-2.0', **kwargs,
    }


def _described() -> dict:
    return _cfg(description='built from the description in the paper; no weights were published', paper_ids='arXiv:2407.12753')


default_cfgs = generate_default_cfgs({
    'lookupvit_micro.untrained': _cfg(
        description='our own, for tests and tutorials; no weights', first_conv='patch_embed.stem.0.conv'),
    'lookupvit_tiny_patch16.untrained': _described(),
    'lookupvit_small_patch16.untrained': _described(),
    'lookupvit_base_patch16.untrained': _described(),
    'lookupvit_large_patch16.untrained': _described(),
})

VARIANTS = {
    'lookupvit_micro': dict(embed_dim=128, depth=4, num_heads=4, patch_size=8, stem='conv', pre_norm=True, pos_std=1.),
    'lookupvit_tiny_patch16': dict(embed_dim=192, depth=12, num_heads=3),
    'lookupvit_small_patch16': dict(embed_dim=384, depth=12, num_heads=6),
    'lookupvit_base_patch16': dict(embed_dim=768, depth=12, num_heads=12),
    'lookupvit_large_patch16': dict(embed_dim=1024, depth=24, num_heads=16),
}


def _create_lookupvit(variant: str, pretrained: bool, **kwargs) -> LookupViT:
    return build_model(LookupViT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def lookupvit_micro(pretrained: bool = False, **kwargs) -> LookupViT:
    """Our own, for tests and tutorials: patches of 8, a convolutional stem and wide positions, for small images and short training."""
    return _create_lookupvit('lookupvit_micro', pretrained, **kwargs)


@register_model
def lookupvit_tiny_patch16(pretrained: bool = False, **kwargs) -> LookupViT:
    """LookupViT on the body of ViT-Ti/16: 9.0 M parameters, 0.58 GMACs (our counts)."""
    return _create_lookupvit('lookupvit_tiny_patch16', pretrained, **kwargs)


@register_model
def lookupvit_small_patch16(pretrained: bool = False, **kwargs) -> LookupViT:
    """LookupViT on the body of ViT-S/16: 34.9 M parameters, 2.18 GMACs (our counts)."""
    return _create_lookupvit('lookupvit_small_patch16', pretrained, **kwargs)


@register_model
def lookupvit_base_patch16(pretrained: bool = False, **kwargs) -> LookupViT:
    """LookupViT on the body of ViT-B/16: 137.0 M parameters, 8.47 GMACs (our counts)."""
    return _create_lookupvit('lookupvit_base_patch16', pretrained, **kwargs)


@register_model
def lookupvit_large_patch16(pretrained: bool = False, **kwargs) -> LookupViT:
    """LookupViT on the body of ViT-L/16: 481.9 M parameters, 29.72 GMACs (our counts)."""
    return _create_lookupvit('lookupvit_large_patch16', pretrained, **kwargs)
