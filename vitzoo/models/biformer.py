"""BiFormer: Vision Transformer with Bi-Level Routing Attention, Zhu et al., CVPR 2023, https://arxiv.org/abs/2303.08810

A four-stage pyramid whose early stages attend to a few regions of the image: the map is cut into n_win x n_win regions, each
region compares its mean query with the mean keys of all and chooses the k best, and its pixels attend to the pixels of those.
The last stage attends to everything. Published code: https://github.com/rayleizhu/BiFormer, which holds two generations of this
attention; they are different functions, and weights of one do not work in the other.

Shapes: B batch, H W map, C channels in heads of d, M = rows * cols regions of P = h * w pixels, k chosen regions.
"""
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_function, register_notrace_module

from ..arguments import check_range, check_types
from ..layers import (
    MOST,
    Gelu,
    SoftmaxAttention,
    attend_unscaled,
    check_ratios,
    check_stages,
    fold_batch_norm,
    fold_identity,
    fold_norm_and_bias,
    linear_of,
    on_nchw,
    per_size,
    record,
    recording,
    require_plain,
    residual_conv,
    split_heads,
)
from ..weights.layout import Layout
from ._builder import build_model
from ._hierarchical import Hierarchical, Stage

__all__ = ['BiFormer']

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
MOST_REGIONS = 256  # per side of a map


@per_size
def region_of_pixel(rows: int, cols: int, h: int, w: int) -> np.ndarray:
    """Number of the region that each pixel of a (rows * h) x (cols * w) map lies in, int64 (M * P,)."""
    return (np.arange(rows * h)[:, None] // h * cols + np.arange(cols * w) // w).ravel()


@register_notrace_function
def complete(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """(B, H, W, C) with zeros at the right and bottom, up to multiples of h and w."""
    H, W = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -W % w, 0, -H % h)) if H % h or W % w else x


def to_regions(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """(B, rows * h, cols * w, C) -> (B * M, P, C), row by row."""
    B, H, W, C = x.shape
    h, w = H // rows, W // cols
    # of rank 4, with a whole row of a region as the last axis
    return x.reshape(B * rows, h, cols, w * C).transpose(1, 2).contiguous().view(-1, h * w, C)


def to_map(x: torch.Tensor, rows: int, cols: int, h: int) -> torch.Tensor:
    """(B * M, P, C) -> (B, rows * h, cols * w, C)."""
    _, P, C = x.shape
    x = x.unflatten(1, (h, -1)).unflatten(0, (-1, cols)).transpose(1, 2)
    return x.contiguous().view(-1, rows * h, cols * P // h, C)


def region_means(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, M, C). Regions that reach over the border are means of what is inside."""
    return F.avg_pool2d(x.detach().permute(0, 3, 1, 2), (h, w), ceil_mode=True).permute(0, 2, 3, 1).flatten(1, 2)


def attend_gathered(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, num_heads: int,
                    sdp_attn: Callable) -> torch.Tensor:
    """Attention to the pixels of the chosen regions, which are gathered: (B * M, P, C), (B, M, k) -> (B * M, heads, P, d).

    Paper, equations 5 and 6. A region is one row of the gather. The scale is that of the whole width, as published.
    """
    B, M, topk = chosen.shape
    _, P, C = q.shape
    rows = (chosen + torch.arange(0, B * M, M, device=chosen.device)[:, None, None]).flatten()
    k, v = (x.index_select(0, rows).view(B * M, topk * P, C) for x in (k, v))
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    return sdp_attn(q, k, v, scale=C ** -0.5)


def attend_masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, region: torch.Tensor,
                  num_heads: int, sdp_attn: Callable) -> torch.Tensor:
    """The same as attention among all N pixels, less the pairs that were not chosen: (B, H, W, C), (B, M, k) -> (B, heads, N, d).

    region (N,) is where each pixel lies. More products than `attend_gathered` has, but no copies: faster while few keys are masked.
    """
    B, M, topk = chosen.shape
    C = q.shape[3]
    mask = None
    if topk < M:
        mask = torch.full((B, M, M), -torch.inf, device=q.device, dtype=q.dtype).scatter(2, chosen, 0.)
        mask = mask.index_select(2, region).index_select(1, region)[:, None]
    q, k, v = (split_heads(x.flatten(1, 2), num_heads) for x in (q, k, v))
    return sdp_attn(q, k, v, mask, scale=C ** -0.5)


def masking_pays(M: int, P: int, topk: int, max_masked: int) -> bool:
    """Whether `attend_masked` is faster than `attend_gathered`.

    To gather a region costs about what 32 masked keys cost: measured on a CPU with maps of 49 to 1024 pixels, 49 to 256 regions, 1 to 16
    chosen. Large maps are never masked, for the memory's sake; where all regions are chosen there is nothing to mask.
    """
    return topk == M or M * P <= 1024 and (M - topk) * P <= max_masked * topk


def add_attention(x: torch.Tensor, y: torch.Tensor, rows: int = 1, cols: int = 1, fused: bool = True) -> torch.Tensor:
    """x (B, H, W, C) plus what attention gave for its regions, (B * M, heads, P, d).

    fused: the sum itself reads the regions in the order of the map, through a transpose of rank 7, which runtimes copy for and compilers,
    who fuse by themselves, take long to understand.
    """
    B, H, W, C = x.shape
    heads, h, w = y.shape[1], H // rows, W // cols
    if not fused or torch.compiler.is_compiling():
        y = y.transpose(1, 2).flatten(2)
        return x + (y.unflatten(1, (H, W)) if rows == cols == 1 else to_map(y, rows, cols, h))
    # the sum takes the memory layout of its first operand
    y = y.unflatten(2, (h, w)).unflatten(0, (-1, rows, cols)).permute(0, 1, 4, 2, 5, 3, 6)
    return (x.unflatten(3, (heads, -1)).unflatten(2, (cols, w)).unflatten(1, (rows, h)) + y).contiguous().view(B, H, W, C)


def project(layer: nn.Linear | nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values: views of one product, or a product each where `Attention.deploy` has split the layer."""
    return [part(x) for part in layer] if isinstance(layer, nn.ModuleList) else layer(x).chunk(3, dim=-1)


def split_linear(linear: nn.Linear, parts: int) -> nn.ModuleList:
    """Layers for equal parts of the output of one."""
    biases = (None,) * parts if linear.bias is None else linear.bias.chunk(parts)
    return nn.ModuleList(map(linear_of, linear.weight.chunk(parts), biases))


class Router(nn.Module):
    """Mean queries and keys of the regions, (B, M, C) each -> the numbers of the k that each attends to, (B, M, k), unordered.

    Paper, equations 3 and 4. The affinity is one of whole vectors: heads share the routing. No gradient passes (as published).
    """

    def __init__(self, topk: int):
        super().__init__()
        self.topk = topk

    @torch.no_grad()
    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.bmm(q, k.transpose(1, 2)).topk(self.topk, sorted=False).indices


def record_routing(module: nn.Module, chosen: torch.Tensor, rows: int, cols: int, h: int, w: int, H: int, W: int) -> None:
    """Record how many regions attend to each position of an H x W map; chosen (B, M, k)."""
    M = rows * cols
    region = region_of_pixel(rows, cols, h, w, like=chosen).view(rows * h, cols * w)[:H, :W]
    record(module, 'regions', F.one_hot(chosen.flatten(1), M).sum(1)[:, region], M, kind='counts')


def make_lepe(dim: int, device=None, dtype=None) -> nn.Conv2d:
    """Local position encoding: a depthwise 5x5 convolution."""
    return nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim, device=device, dtype=dtype)


def heads_of_regions(x: torch.Tensor, rows: int, cols: int, num_heads: int) -> torch.Tensor:
    """(B, rows * h, cols * w, C) -> (B * M, heads, P, d), in one transpose."""
    B, H, W, C = x.shape
    h, w = H // rows, W // cols
    x = x.reshape(B * rows, h, cols, w, num_heads, C // num_heads).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, num_heads, h * w, C // num_heads)


def heads_to_map(x: torch.Tensor, rows: int, cols: int, h: int) -> torch.Tensor:
    """(B * M, heads, P, d) -> (B, rows * h, cols * w, C), in one transpose."""
    _, heads, P, d = x.shape
    x = x.reshape(-1, cols, heads, h, P // h, d).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, rows * h, cols * P // h, heads * d)


def means_in_turn(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """`region_means` of a map that divides, (B, rows * h, cols * w, C) -> (B, M, C): of columns, then of rows of a region.

    No pooling, for which runtimes want channels first.
    """
    B, H, W, C = x.shape
    x = x.reshape(B * rows, H // rows, W * C).mean(1)
    return x.view(B, rows * cols, W // cols, C).mean(2)


def attend_gathered_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`attend_gathered` of what lies (B * M, heads, P, d), with scaled queries -> (B * M, heads, P, d).

    A row of the gather is one head of one region, so that the copies lie as the products read them, and only once.
    """
    B, M, topk = chosen.shape
    _, heads, P, d = q.shape
    rows = chosen + torch.arange(0, B * M, M, device=chosen.device)[:, None, None]
    rows = (rows.view(B * M, 1, topk) * heads + torch.arange(heads, device=chosen.device)[:, None]).flatten()
    k, v = (x.reshape(-1, P * d).index_select(0, rows).view(B * M, heads, topk * P, d) for x in (k, v))
    return attend_unscaled(q, k, v)


# Added to the logits of pairs that were not chosen: their weights are e^-60 of what they were, below all rounding. With less, such as
# -inf, weights are denormal numbers or cut off at them, at which ONNX Runtime's softmax is several times as slow.
NOT_CHOSEN = -60.


def attend_masked_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """`attend_masked` of what lies (B, heads, N, d), with scaled queries -> (B, heads, N, d). region (N,) is where each pixel lies."""
    B, M, topk = chosen.shape
    mask = None
    if topk < M:
        mask = torch.full((B, M, M), NOT_CHOSEN, device=q.device, dtype=q.dtype).scatter(2, chosen, 0.)
        # a product copies columns faster than a gather does
        pixels = F.one_hot(region, int(M)).to(q.dtype)  # (N, M); the TorchScript exporter traces sizes
        mask = (mask @ pixels.T).index_select(1, region)[:, None]
    return attend_unscaled(q, k, v, mask)


class DeployedRouting(nn.Module):
    """Either routing attention as ONNX Runtime is quick at it, of a (B, H, W, C) map.

    Queries, keys and values come from a product each, since views of one would be copies, and are laid out once, by head and region.
    """

    def __init__(self, attn: nn.Module, qkv: nn.Linear, out: nn.Linear):
        super().__init__()
        require_plain(nn.Linear, qkv)
        self.num_heads = attn.num_heads
        self.max_masked = attn.max_masked
        self.completes_input = attn.completes_input
        self.grid = attn.grid
        self.q, self.k, self.v = layers = split_linear(qkv, 3)
        scale = qkv.in_features ** -0.5  # it does not change which regions are chosen
        self.q.weight = nn.Parameter(self.q.weight * scale, requires_grad=False)
        self.q.bias = nn.Parameter(self.q.bias * scale, requires_grad=False)
        for name, layer in zip('qkv', layers, strict=True):
            self.register_buffer(f'{name}_of_zero', layer.bias.detach().clone())  # the layer may lose its bias, see `Block.deploy`
        self.router = attn.router
        self.lepe = attn.lepe
        self.out = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = map(int, x.shape[1:3])  # the TorchScript exporter traces sizes
        rows, cols, h, w = self.grid(H, W)
        q, k, v = self.q(x), self.k(x), self.v(x)
        divides = (H, W) == (rows * h, cols * w)
        if divides:
            chosen = self.router(means_in_turn(q, rows, cols), means_in_turn(k, rows, cols))
        elif self.completes_input:  # by zeros, of which these products would be
            q, k, v = (F.pad(m - zero, (0, 0, 0, cols * w - W, 0, rows * h - H)) + zero
                       for m, zero in ((q, self.q_of_zero), (k, self.k_of_zero), (v, self.v_of_zero)))
            chosen = self.router(means_in_turn(q, rows, cols), means_in_turn(k, rows, cols))
        else:
            chosen = self.router(region_means(q, h, w), region_means(k, h, w))
            q, k, v = (complete(m, h, w) for m in (q, k, v))
        local = on_nchw(self.lepe, v)
        if masking_pays(rows * cols, h * w, self.router.topk, self.max_masked):
            q, k, v = (split_heads(m.flatten(1, 2), self.num_heads) for m in (q, k, v))
            y = attend_masked_heads(q, k, v, chosen, region_of_pixel(rows, cols, h, w, like=x))
            y = y.transpose(1, 2).reshape(local.shape)
        else:
            q, k, v = (heads_of_regions(m, rows, cols, self.num_heads) for m in (q, k, v))
            y = heads_to_map(attend_gathered_heads(q, k, v, chosen), rows, cols, h)
        y = y + local
        return self.out(y if divides else y[:, :H, :W])


@register_notrace_module
class RoutingAttention(nn.Module):
    """Bi-level routing attention of a (B, H, W, C) map in n_win x n_win regions, plus a local position encoding of the values.

    A map that does not divide is completed with zeros before the projection, so that queries, keys and values of the padding are the
    bias. They count in the means of their regions, are attended to, and reach the position encoding (as published). Regions that are
    all padding tie in the routing; their keys and values are the same, so that it does not matter which of them is chosen.
    """
    max_masked = 32  # keys for each chosen region that are rather masked than left out; 0 computes no more than needed
    completes_input = True

    def __init__(self, dim: int, num_heads: int, n_win: int, topk: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.n_win = n_win
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.router = Router(topk)
        self.sdp_attn = SoftmaxAttention()
        self.lepe = make_lepe(dim, **dd)
        self.wo = nn.Linear(dim, dim, **dd)

    def grid(self, H: int, W: int) -> tuple[int, int, int, int]:
        """Rows and columns of regions, height and width of each."""
        n = self.n_win
        return n, n, (H + n - 1) // n, (W + n - 1) // n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        rows, cols, h, w = self.grid(int(H), int(W))  # the TorchScript exporter traces sizes
        x = complete(x, rows, cols)
        if masking_pays(rows * cols, h * w, self.router.topk, self.max_masked):
            q, k, v = project(self.qkv, x)
            chosen = self.router(region_means(q, h, w), region_means(k, h, w))
            y = attend_masked(q, k, v, chosen, region_of_pixel(rows, cols, h, w, like=x), self.num_heads, self.sdp_attn)
            y = add_attention(on_nchw(self.lepe, v.contiguous()), y)
        else:
            q, k, v = project(self.qkv, to_regions(x, rows, cols))
            chosen = self.router(*(m.detach().mean(1).view(B, rows * cols, C) for m in (q, k)))
            y = attend_gathered(q, k, v, chosen, self.num_heads, self.sdp_attn)
            y = add_attention(on_nchw(self.lepe, to_map(v, rows, cols, h)), y, rows, cols)
        if recording():
            record_routing(self, chosen, rows, cols, h, w, H, W)
        return self.wo(y if y.shape[1:3] == (H, W) else y[:, :H, :W])

    def deploy(self, runtime: str) -> nn.Module:
        """Raises ValueError if the projection is more than its weight."""
        return DeployedRouting(self, self.qkv, self.wo)


@register_notrace_module
class NchwRoutingAttention(nn.Module):
    """The later bi-level routing attention, of a (B, H, W, C) map of at least n_win x n_win.

    Regions are of (H // n_win) x (W // n_win) pixels, and as many as it takes: more than n_win a side where that does not divide. Zeros
    complete the map after the projection: they count in no mean, but padded keys are attended to, with logit 0 and value 0 (as
    published). Where the sizes divide, this is what `RoutingAttention` does.
    """
    max_masked = RoutingAttention.max_masked
    completes_input = False

    def __init__(self, dim: int, num_heads: int, n_win: int, topk: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.n_win = n_win
        self.qkv_linear = nn.Linear(dim, 3 * dim, **dd)  # names that keep the two generations' files apart
        self.router = Router(topk)
        self.sdp_attn = SoftmaxAttention()
        self.lepe = make_lepe(dim, **dd)
        self.output_linear = nn.Linear(dim, dim, **dd)

    def grid(self, H: int, W: int) -> tuple[int, int, int, int]:
        """Rows and columns of regions, height and width of each."""
        h, w = H // self.n_win, W // self.n_win
        return (H + h - 1) // h, (W + w - 1) // w, h, w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        rows, cols, h, w = self.grid(int(H), int(W))  # the TorchScript exporter traces sizes
        q, k, v = project(self.qkv_linear, x)
        chosen = self.router(region_means(q, h, w), region_means(k, h, w))
        q, k, v = (complete(m, h, w) for m in (q, k, v))
        if masking_pays(rows * cols, h * w, self.router.topk, self.max_masked):
            y = attend_masked(q, k, v, chosen, region_of_pixel(rows, cols, h, w, like=x), self.num_heads, self.sdp_attn)
            y = add_attention(on_nchw(self.lepe, v.contiguous()), y)
        else:
            y = attend_gathered(*(to_regions(m, rows, cols) for m in (q, k, v)), chosen, self.num_heads, self.sdp_attn)
            y = add_attention(on_nchw(self.lepe, v.contiguous()), y, rows, cols)
        if recording():
            record_routing(self, chosen, rows, cols, h, w, H, W)
        return self.output_linear(y if y.shape[1:3] == (H, W) else y[:, :H, :W])

    def deploy(self, runtime: str) -> nn.Module:
        """Raises ValueError if the projection is more than its weight."""
        return DeployedRouting(self, self.qkv_linear, self.output_linear)


@register_notrace_module
class Attention(nn.Module):
    """Attention of all positions of a (B, H, W, C) map in 8 heads, plus a local position encoding.

    The encoding is one of the layer's input (`lepe_of_values=False`) or of the values: the two published generations differ in it.
    """
    fused = True  # see `add_attention`

    def __init__(self, dim: int, lepe_of_values: bool, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = 8  # of every published width
        self.lepe_of_values = lepe_of_values
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.sdp_attn = SoftmaxAttention()
        self.lepe = make_lepe(dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = project(self.qkv, x)
        y = self.sdp_attn(*(split_heads(m.flatten(1, 2), self.num_heads) for m in qkv))
        return self.proj(add_attention(on_nchw(self.lepe, qkv[2].contiguous() if self.lepe_of_values else x), y, fused=self.fused))

    def deploy(self, runtime: str) -> nn.Module:
        """A product each for queries, keys and values, since views of one would be copies.

        Raises ValueError if the layer is more than its weight.
        """
        if not isinstance(self.qkv, nn.ModuleList):
            require_plain(nn.Linear, self.qkv)
            self.qkv = split_linear(self.qkv, 3)
        self.fused = False
        return self


class Block(nn.Module):
    """Convolutional position embedding (but for the Swin layout), attention, MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, pos_embed: bool, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.pos_embed = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd) if pos_embed else None
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = attn
        self.norm2 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=Gelu, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pos_embed is not None:
            x = residual_conv(self.pos_embed, x)
        # the sums take the memory layout of their first operand: channels last
        x = self.drop_path(self.attn(self.norm1(x))) + x
        x = self.drop_path(self.mlp(self.norm2(x))) + x
        return x

    def fuse(self) -> nn.Module:
        """Add the identity to the kernel of the position embedding (inference only)."""
        if self.pos_embed is not None:
            self.pos_embed = fold_identity(self.pos_embed)
        return self

    def deploy(self, runtime: str) -> nn.Module:
        """Products without a bias, which is one more pass over what they write, but not for those in 8 bits.

        Raises ValueError if a layer is more than its weight.
        """
        if runtime == 'onnx-int8':
            return self
        if isinstance(self.attn, DeployedRouting):
            self.norm1 = fold_norm_and_bias(self.norm1, self.attn.q, self.attn.k, self.attn.v)
        self.norm2 = fold_norm_and_bias(self.norm2, self.mlp.fc1)
        return self


class ConvNorm(nn.Module):
    """Strided convolution and batch norm, (B, H, W, C) -> (B, H', W', C').

    A 3x3 convolution pads by 1. Others are patches of `stride` x `stride`; `pad` completes the last ones with zeros.
    """

    def __init__(self, in_dim: int, dim: int, kernel_size: int = 3, stride: int = 2, pad: bool = False, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.multiple = stride if pad else 1
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride, padding=int(kernel_size == 3), **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = complete(x, self.multiple, self.multiple)
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def fuse(self) -> nn.Module:
        """Fold the batch norm into the convolution (inference only)."""
        self.conv, self.norm = fold_batch_norm(self.conv, self.norm)
        return self


class NormConv(nn.Module):
    """Batch norm and a convolution of 2x2 patches, (B, H, W, C) -> (B, H', W', C'); `pad` completes the last ones with zeros."""

    def __init__(self, in_dim: int, dim: int, pad: bool, device=None, dtype=None):
        super().__init__()
        self.multiple = 2 if pad else 1
        self.norm = nn.BatchNorm2d(in_dim, device=device, dtype=dtype)
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=2, stride=2, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return on_nchw(self.conv, complete(on_nchw(self.norm, x), self.multiple, self.multiple))


class Stem(nn.Sequential):
    """Image (B, in_chans, H, W) -> (B, H / 4, W / 4, C): two 3x3 convolutions, or patches of 4x4 in the Swin layout."""

    def __init__(self, in_chans: int, dim: int, swin_layout: bool, pad: bool, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        if swin_layout:
            super().__init__(ConvNorm(in_chans, dim, kernel_size=4, stride=4, pad=pad, **dd))
        else:
            super().__init__(ConvNorm(in_chans, dim // 2, **dd), Gelu(), ConvNorm(dim // 2, dim, **dd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # from here on every map lies channels last in memory
        return super().forward(x.permute(0, 2, 3, 1).contiguous())


# Published names -> ours, applied in turn to every name; None drops it.
_HEAD = ((r'^extra_norms\.(\d)\.', r'norm\1.'), (r'^head\.(?!fc\.)', 'head.fc.'))
_BLOCKS = (
    (r'\.attn\.qkv\.qkv\.', '.attn.qkv.'),
    (r'\.mlp\.0\.', '.mlp.fc1.'),
    (r'\.mlp\.[23]\.', '.mlp.fc2.'),
)
_SWIN_LAYOUT = (
    (r'^downsample_layers\.0\.0\.', 'stem.0.conv.'),
    (r'^downsample_layers\.0\.1\.', 'stem.0.norm.'),
    (r'^downsample_layers\.(\d)\.0\.', r'stages.\1.downsample.norm.'),
    (r'^downsample_layers\.(\d)\.1\.', r'stages.\1.downsample.conv.'),
)
PUBLISHED = Layout(
    name='a BiFormer checkpoint: use biformer_tiny, biformer_small or biformer_base',
    marker=r'^stages\.\d\.\d+\.attn\.qkv\.qkv\.',
    own_marker=r'^stem\.2\.norm\.',
    suits=lambda model: not model.swin_layout and not model.nchw,
    rules=(
        (r'^downsample_layers\.0\.0\.', 'stem.0.conv.'),
        (r'^downsample_layers\.0\.1\.', 'stem.0.norm.'),
        (r'^downsample_layers\.0\.3\.', 'stem.2.conv.'),
        (r'^downsample_layers\.0\.4\.', 'stem.2.norm.'),
        (r'^downsample_layers\.(\d)\.0\.', r'stages.\1.downsample.conv.'),
        (r'^downsample_layers\.(\d)\.1\.', r'stages.\1.downsample.norm.'),
        (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
        *_BLOCKS, *_HEAD,
    ),
)
STL = Layout(
    name='a BiFormer-STL checkpoint: use biformer_stl',
    marker=r'^stages\.\d\.blocks\.\d+\.attn\.qkv\.qkv\.',
    own_marker=r'\.attn\.wo\.',
    suits=lambda model: model.swin_layout and not model.nchw,
    rules=(*_SWIN_LAYOUT, *_BLOCKS, *_HEAD),
)
NCHW = Layout(
    name='a checkpoint of the later BiFormer-STL: use biformer_stl_nchw',
    marker=r'\.attn\.qkv_linear\.',
    suits=lambda model: model.nchw,
    rules=(*_SWIN_LAYOUT, *_BLOCKS, *_HEAD),
)


class BiFormer(Hierarchical):
    """Vision Transformer with bi-level routing attention (https://arxiv.org/abs/2303.08810).

    Takes images of any height and width from 1x1 on (`nchw`: from 16 * n_win on); maps are ceil(H / 4) .. ceil(H / 32).

    Args:
        embed_dims, depths: per stage.
        n_win: regions per side of every routed stage's map. Nothing learned depends on it: 7 suits 224x224; the published detectors
            have 16, the published segmentors 8.
        topks: regions that each region attends to, per stage; -2 (`nchw`: -1) for attention of all positions, in 8 heads.
        head_dim: width of a head of the routing attention.
        auto_pad: complete maps that do not divide, as the published dense code does, and patches of the Swin layout. Without it the
            model is the published classifier: maps must divide into n_win regions per side, and the Swin layout cuts what is left
            of the last patch (`nchw`, which pads its regions anyway, takes any size from its minimum on).
        swin_layout: 4x4 patches, batch norm before 2x2 downsampling, no position embedding.
        nchw: the later generation of both attentions.

    Raises:
        ValueError: on numbers that do not fit together, and without `auto_pad` on images that do not divide.
    """
    layouts = (PUBLISHED, STL, NCHW)
    selects = True
    dense_norm_eps = 1e-6
    exportable_dynamic_size = 'its regions are laid out for one size'  # read by vitzoo.export

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, ...] = (64, 128, 256, 512),
            depths: tuple[int, ...] = (4, 4, 18, 4),
            n_win: int = 7,
            topks: tuple[int, ...] = (1, 4, 16, -2),
            head_dim: int = 32,
            mlp_ratio: float = 3.,
            auto_pad: bool = True,
            swin_layout: bool = False,
            nchw: bool = False,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, topks=topks)
        check_range(1, MOST, head_dim=head_dim)
        check_range(1, MOST_REGIONS, n_win=n_win)
        check_ratios(embed_dims, mlp_ratio=mlp_ratio)
        everything = -1 if nchw else -2
        if any(k != everything and not 1 <= k <= n_win ** 2 for k in topks):
            raise ValueError(f'topks={topks}: expected 1 to n_win ** 2 = {n_win ** 2} regions, or {everything} for all positions '
                             f'with nchw={nchw}.')
        for dim, k in zip(embed_dims, topks, strict=True):
            if dim % (8 if k == everything else head_dim):
                raise ValueError(f'embed_dims={embed_dims}: {dim} channels do not divide into '
                                 + ('8 heads.' if k == everything else f'heads of head_dim={head_dim}.'))
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims)
        dd = {'device': device, 'dtype': dtype}
        self.n_win = n_win
        self.auto_pad = auto_pad
        self.swin_layout = swin_layout
        self.nchw = nchw
        self.routed = tuple(4 * 2 ** i for i, k in enumerate(topks) if k != everything)  # strides of these stages

        def make_attention(dim: int, k: int) -> nn.Module:
            if k == everything:
                return Attention(dim, lepe_of_values=nchw, **dd)
            return (NchwRoutingAttention if nchw else RoutingAttention)(dim, dim // head_dim, n_win, k, **dd)

        self.stem = Stem(in_chans, embed_dims[0], swin_layout, auto_pad, **dd)
        drop_path = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            downsample = nn.Identity()
            if i:
                downsample = NormConv(embed_dims[i - 1], dim, auto_pad, **dd) if swin_layout else ConvNorm(embed_dims[i - 1], dim, **dd)
            blocks = [Block(dim, make_attention(dim, topks[i]), mlp_ratio, not swin_layout, rate, **dd) for rate in drop_path[i]]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(embed_dims[-1], **dd)
        self.build_head(**dd)
        self._init_weights()

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            # in the later generation all but the classifier were convolutions, and keep torch's default
            if isinstance(module, nn.Linear) and (not self.nchw or name == 'head.fc'):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_final(self, x: torch.Tensor) -> torch.Tensor:
        return on_nchw(self.norm, x)

    @property
    def min_input_size(self) -> tuple[int, int]:
        """The smallest image (H, W)."""
        smallest = 1 if self.auto_pad or not self.swin_layout else self.feature_info[-1]['reduction']  # a patch of the last stage
        if self.nchw:  # a map cannot be cut into more regions than it has pixels
            smallest = max([smallest, *(self.n_win * stride for stride in self.routed)])
        return smallest, smallest

    def check_input(self, x: torch.Tensor) -> None:
        super().check_input(x)
        if not self.auto_pad and not self.nchw:
            check_division(x, self.n_win, self.routed, self.swin_layout)


@register_notrace_function
def check_division(x: torch.Tensor, n_win: int, strides: tuple[int, ...], floor: bool) -> None:
    """Raise ValueError unless the maps of image x at these strides divide into n_win x n_win regions."""
    for stride in strides:
        H, W = (n // stride if floor else (n + stride - 1) // stride for n in x.shape[2:])
        if H % n_win or W % n_win:
            raise ValueError(f'Image of {x.shape[2]}x{x.shape[3]}: its map of {H}x{W} at stride {stride} does not divide into '
                             f'{n_win}x{n_win} regions. Multiples of {n_win * max(strides)} do; auto_pad=True takes any size.')


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.0.conv', 'classifier': 'head.fc', **kwargs,
    }


def _share(filename: str, **kwargs) -> dict:
    """Published on a share that no program can download from."""
    return _cfg(
        origin_url='https://1drv.ms/u/s!AkBbczdRlZvChGsXFqAA-PVnA-R8?e=IPlOCG', notes=(f'file: {filename}',),
        paper_ids='arXiv:2303.08810', license='mit', **kwargs)


default_cfgs = generate_default_cfgs({
    'biformer_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'biformer_nchw_micro.untrained': _cfg(
        description='our own, for tests; no weights', license='apache-2.0', min_input_size=(3, 64, 64)),
    'biformer_tiny.in1k': _share('biformer_tiny_in1k.pth'),
    'biformer_small.in1k': _share('biformer_small_in1k.pth'),
    'biformer_base.in1k': _share('biformer_base_in1k.pth'),
    'biformer_stl.in1k': _share('biformer_stl_in1k.pth'),
    'biformer_stl_nchw.in1k': _share('biformer_stl_nchw_in1k.pth', min_input_size=(3, 112, 112)),
})

_STL = dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), mlp_ratio=4., swin_layout=True)
VARIANTS = {
    'biformer_micro': dict(embed_dims=(32, 64, 96, 192), depths=(1, 1, 2, 1)),
    'biformer_nchw_micro': dict(
        embed_dims=(32, 64, 96, 192), depths=(1, 1, 2, 1), mlp_ratio=3., swin_layout=True, nchw=True, n_win=4, topks=(1, 2, 4, -1)),
    'biformer_tiny': dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 8, 2)),
    'biformer_small': dict(embed_dims=(64, 128, 256, 512), depths=(4, 4, 18, 4)),
    'biformer_base': dict(embed_dims=(96, 192, 384, 768), depths=(4, 4, 18, 4)),
    'biformer_stl': _STL,
    'biformer_stl_nchw': dict(**_STL, nchw=True, topks=(1, 4, 16, -1)),
}


def _create_biformer(variant: str, pretrained: bool, **kwargs) -> BiFormer:
    return build_model(BiFormer, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def biformer_micro(pretrained: bool = False, **kwargs) -> BiFormer:
    """Our own, 1.1 M parameters, for tests and tutorials."""
    return _create_biformer('biformer_micro', pretrained, **kwargs)


@register_model
def biformer_nchw_micro(pretrained: bool = False, **kwargs) -> BiFormer:
    """Our own, the later generation with 4x4 regions, for tests."""
    return _create_biformer('biformer_nchw_micro', pretrained, **kwargs)


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-T: 13.1 M parameters, 2.2 GFLOPs, 81.4 % ImageNet top-1 (published README)."""
    return _create_biformer('biformer_tiny', pretrained, **kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-S: 25.5 M parameters, 4.5 GFLOPs, 83.8 % ImageNet top-1 (published README)."""
    return _create_biformer('biformer_small', pretrained, **kwargs)


@register_model
def biformer_base(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-B: 56.8 M parameters, 9.8 GFLOPs, 84.3 % ImageNet top-1 (published README)."""
    return _create_biformer('biformer_base', pretrained, **kwargs)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-STL, in the layout of Swin-T: 28.4 M parameters, 4.6 GFLOPs, 82.7 % ImageNet top-1 (published README)."""
    return _create_biformer('biformer_stl', pretrained, **kwargs)


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-STL of the later generation, another function: 28.4 M parameters, 4.6 GFLOPs, 82.7 % top-1 (published README).

    Takes images from 112x112 on.
    """
    return _create_biformer('biformer_stl_nchw', pretrained, **kwargs)
