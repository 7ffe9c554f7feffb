"""DaViT: Dual Attention Vision Transformers, Ding et al., ECCV 2022, https://arxiv.org/abs/2204.03645

A four-stage pyramid of two attentions in turn, both of linear cost in the number of pixels: a spatial block attends among
the positions of a window, a channel block among the channels of a group, whose tokens are whole maps and so see all of the
image. Published code: https://github.com/dingmyu/davit. Parameters are named as in timm's davit_*, whose files load as they
are; timm owns those names, hence ours with the prefix vz_.

Shapes: B batch, H W map, N = H * W positions, C channels in g groups (or heads) of d, h w window, M windows.
"""
from collections import OrderedDict
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_function, register_notrace_module

from ..arguments import check_types
from ..layers import (
    Gelu,
    SoftmaxAttention,
    attend_unscaled,
    cells,
    channels_last,
    check_pair,
    check_ratios,
    check_stages,
    fold_identity,
    is_plain,
    join_heads,
    linear_of,
    on_nchw,
    pointwise_conv,
    record,
    recording,
    require_plain,
    residual_conv,
    split_qkv,
)
from ..weights.layout import Layout
from ._builder import build_model
from ._hierarchical import Hierarchical, Stage

__all__ = ['DaViT']

LayerNorm = partial(nn.LayerNorm, eps=1e-5)
MIN_SAVED_MACS = 2 ** 26  # an image; fewer are not worth three more operators


@register_notrace_function
def pad_to_windows(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) with zeros at the right and bottom that complete the last windows."""
    H, W = x.shape[1:3]
    h, w = window
    if H % h or W % w or torch.jit.is_tracing():  # what TorchScript traces serves other sizes too
        x = F.pad(x, (0, 0, 0, (w - W % w) % w, 0, (h - H % h) % h))
    return x


@register_notrace_function
def to_windows(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, M, h * w, C), row by row; zeros at the right and bottom complete the last windows."""
    x = pad_to_windows(x, window)
    B, H, W, C = x.shape
    h, w = window
    # rank 4, with whole rows of a window as the last axis
    return x.view(B * (H // h), h, W // w, w * C).transpose(1, 2).contiguous().view(B, (H // h) * (W // w), h * w, C)


@register_notrace_function
def to_window_heads(x: torch.Tensor, window: tuple[int, int], num_heads: int) -> torch.Tensor:
    """(B, H, W, C) -> (B * M, heads, h * w, d), the windows of `to_windows` and their heads at once."""
    B, H, W, C = x.shape
    h, w = window
    x = x.view(B * (H // h), h, W // w, w, num_heads, C // num_heads).permute(0, 2, 4, 1, 3, 5)
    return x.contiguous().view(B * (H // h) * (W // w), num_heads, h * w, C // num_heads)


@register_notrace_function
def from_window_heads(x: torch.Tensor, window: tuple[int, int], H: int, W: int) -> torch.Tensor:
    """The reverse of `to_window_heads`, less the padding: (B * M, heads, h * w, d) -> (B, H, W, C)."""
    num_heads, d = x.shape[1], x.shape[3]
    h, w = window
    rows, cols = (H + h - 1) // h, (W + w - 1) // w
    x = x.view(-1, cols, num_heads, h, w, d).permute(0, 3, 1, 4, 2, 5).contiguous()
    return x.view(-1, rows * h, cols * w, num_heads * d)[:, :H, :W]


@register_notrace_function
def add_windows(x: torch.Tensor, windows: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """x (B, H, W, C) plus the map that `to_windows` would cut into these windows, less its padding."""
    B, H, W, C = x.shape
    h, w = window
    rows, cols = (H + h - 1) // h, (W + w - 1) // w
    if H % h or W % w or torch.jit.is_tracing():
        y = windows.view(B * rows, cols, h, w * C).transpose(1, 2).contiguous().view(B, rows * h, cols * w, C)
        return y[:, :H, :W] + x
    # The sum itself reads the windows in the order of the map; it answers in the memory order of its first operand.
    y = windows.view(B, rows, cols, h, w, C).transpose(2, 3)
    return (x.unflatten(2, (cols, w)).unflatten(1, (rows, h)) + y).view(B, H, W, C)


class ConvPosEnc(nn.Module):
    """x + depthwise 3x3 (x) on a (B, H, W, C) map, with `act` a GELU on the second term."""

    def __init__(self, dim: int, act: bool = False, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, device=device, dtype=dtype)
        self.act = Gelu() if act else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return residual_conv(self.proj, x) if self.act is None else x + self.act(on_nchw(self.proj, x))

    def fuse(self) -> nn.Module:
        """Add the identity to the kernel (inference only)."""
        if self.act is None:
            self.proj = fold_identity(self.proj)
        return self


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, (B, M, h * w, C) in and out; qkv rows ordered q, k, v, then head, then head channel.

    There is no mask: padded positions are attended to, with the bias of qkv as their keys and values (as published).
    """

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.sdp_attn = SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, M, L, C = x.shape
        qkv = self.qkv(x).view(B * M, L, 3 * self.num_heads, C // self.num_heads).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=1)  # (B * M, heads, h * w, d) each
        return self.proj(join_heads(self.sdp_attn(q, k, v)).view(B, M, L, C))


def channel_map(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of channels, (B * g, d, N) and (B * g, N, d) -> (B * g, d, d), each row summing to 1.

    Logits are sums over all positions and reach thousands: they are scaled before they are rounded, for float16's sake.
    """
    logits = torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)
    return logits.softmax(2, dtype=torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else None).to(logits.dtype)


def times_each(a: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """One matrix (I, J) times each of a batch (B, J, K), plus a bias for each row (I): (B, I, K)."""
    a = a.expand(x.shape[0], -1, -1)
    return torch.bmm(a, x) if bias is None else torch.baddbmm(bias[:, None], a, x)


@register_notrace_module
class ChannelAttention(nn.Module):
    """Self-attention of the channels of each group over all positions, (B, H, W, C) in and out; qkv rows as in WindowAttention.

    The paper's channel group attention with the roles that the published code gives: A = softmax(d^-0.5 k^T v), a (d, d) map with rows
    for k and columns for v, and the output is A q^T. In v2 (Florence-2): A = softmax(N^-0.5 q^T k), and the output is A v^T.
    """

    def __init__(self, dim: int, num_heads: int, v2: bool = False, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.v2 = v2
        self.qkv = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        N, g = H * W, self.num_heads
        scale = (N if self.v2 else C // g) ** -0.5
        roles = (0, 1, 2) if self.v2 else (1, 2, 0)  # rows of the map, its columns, values
        x = x.view(B, N, C)
        if N > C and is_plain(self.qkv, nn.Linear) and is_plain(self.proj, nn.Linear):
            return self._forward_merged(x, roles, scale).view(B, H, W, C)
        qkv = self.qkv(x).view(B, N, 3, g, C // g).permute(2, 0, 3, 1, 4).contiguous().view(3, B * g, N, C // g)
        left, right, values = (qkv[i] for i in roles)
        x = torch.bmm(values, channel_map(left.transpose(1, 2), right, scale).transpose(1, 2))
        return self.proj(x.view(B, g, N, C // g).transpose(1, 2).contiguous().view(B, H, W, C))

    def _forward_merged(self, x: torch.Tensor, roles: tuple[int, int, int], scale: float) -> torch.Tensor:
        """The same, (B, N, C) in and out, for more positions than channels: nothing of size N * C is copied or made in vain.

        Rows and columns of the map are projected channels first, and map and projection merge into one matrix (C, C) an image.
        """
        B, N, C = x.shape
        g = self.num_heads
        weights, biases = self.qkv.weight.view(3, C, C), self.qkv.bias.view(3, C)
        left, right = (times_each(weights[i], x.transpose(1, 2), biases[i]).view(B * g, C // g, N) for i in roles[:2])
        A = channel_map(left, right.transpose(1, 2), scale)
        proj = self.proj.weight.t().unflatten(0, (g, -1)).expand(B, -1, -1, -1).contiguous().view(B * g, C // g, C)
        merged = torch.bmm(A.transpose(1, 2), proj).view(B, C, C)
        weight, bias = weights[roles[2]], biases[roles[2]]
        if (N - C) * C * C < MIN_SAVED_MACS:
            return torch.baddbmm(self.proj.bias, F.linear(x, weight, bias), merged)
        bias = times_each(bias[None], merged) + self.proj.bias
        return torch.baddbmm(bias, x, times_each(weight.t(), merged))


class Block(nn.Module):
    """Position encoding, attention, position encoding, MLP; (B, H, W, C) in and out. Base of the two kinds."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, cpe_act: bool, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.cpe1 = ConvPosEnc(dim, cpe_act, **dd)
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = attn
        self.cpe2 = ConvPosEnc(dim, cpe_act, **dd)
        self.norm2 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=Gelu, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def add_attention(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop_path(self.attn(self.norm1(x))) + x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe2(self.add_attention(self.cpe1(x)))
        # the sum takes the memory layout of its first operand: channels last
        return self.drop_path(self.mlp(self.norm2(x))) + x

    def deploy(self, runtime: str) -> nn.Module:
        """As a chain of convolutions, but where it is to be quantised. Raises ValueError if the linear layers are more than weights."""
        if runtime == 'onnx-int8':
            return self
        require_plain(nn.Linear, self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2)
        return DeployedBlock(self, self.deployed_attention())


class SpatialBlock(Block):
    """Block with attention within windows."""

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], *args, device=None, dtype=None):
        super().__init__(dim, WindowAttention(dim, num_heads, device=device, dtype=dtype), *args, device=device, dtype=dtype)
        self.window = window

    def add_attention(self, x: torch.Tensor) -> torch.Tensor:
        if recording():
            (H, W), (h, w) = x.shape[1:3], self.window
            record(self, 'windows', cells(H, W, h, w), -(-H // h) * -(-W // w))
        y = self.drop_path(self.attn(to_windows(self.norm1(x), self.window)))
        return add_windows(x, y, self.window)

    def deployed_attention(self) -> nn.Module:
        return DeployedWindowAttention(self.attn, self.window)


class ChannelBlock(Block):
    """Block with attention of channels."""

    def __init__(self, dim: int, num_heads: int, v2: bool, *args, device=None, dtype=None):
        super().__init__(dim, ChannelAttention(dim, num_heads, v2, device=device, dtype=dtype), *args, device=device, dtype=dtype)

    def deployed_attention(self) -> nn.Module:
        return DeployedChannelAttention(self.attn)


class DeployedWindowAttention(nn.Module):
    """What a `SpatialBlock` attends to, less the last projection; (B, H, W, C) in and out.

    Windows are cut after the projections, together with the heads, and nothing is split, see `split_qkv`.
    """

    def __init__(self, attn: WindowAttention, window: tuple[int, int]):
        super().__init__()
        self.window = window
        self.num_heads = attn.num_heads
        self.q, self.k, self.v, proj = split_qkv([attn.qkv], attn.proj, attn.num_heads)
        self.proj = pointwise_conv(proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = x.shape[1:3]
        x = pad_to_windows(x, self.window)
        q, k, v = (to_window_heads(layer(x), self.window, self.num_heads) for layer in (self.q, self.k, self.v))
        return from_window_heads(attend_unscaled(q, k, v), self.window, H, W)


class DeployedChannelAttention(nn.Module):
    """What a `ChannelBlock` attends to, less the last projection; (B, H, W, C) in and out."""

    def __init__(self, attn: ChannelAttention):
        super().__init__()
        self.num_heads = attn.num_heads
        self.v2 = attn.v2
        # rows of the map, its columns, values
        q, k, v = (linear_of(*parts) for parts in zip(attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3), strict=True))
        self.left, self.right, self.values = (pointwise_conv(layer) for layer in ((q, k, v) if self.v2 else (k, v, q)))
        self.proj = pointwise_conv(attn.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        N, g = H * W, self.num_heads
        scale = (N if self.v2 else C // g) ** -0.5
        x = x.permute(0, 3, 1, 2)
        left, right, values = (conv(x).view(B, g, C // g, N) for conv in (self.left, self.right, self.values))
        A = (left @ right.transpose(2, 3) * scale).softmax(-1)
        return (A @ values).view(B, C, H, W).permute(0, 2, 3, 1)


class DeployedBlock(nn.Module):
    """`Block` whose map between the layers is NCHW, where the runtime adds what is kept within convolutions; (B, H, W, C) in and out."""

    def __init__(self, block: Block, attn: nn.Module):
        super().__init__()
        self.cpe1 = block.cpe1
        self.norm1 = block.norm1
        self.attn = attn
        self.cpe2 = block.cpe2
        self.norm2 = block.norm2
        self.fc1 = pointwise_conv(block.mlp.fc1)
        self.act = block.mlp.act
        self.fc2 = pointwise_conv(block.mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe1(x)
        y = self.attn(self.norm1(x))
        x = x.permute(0, 3, 1, 2) + self.attn.proj(y.permute(0, 3, 1, 2))
        x = self.cpe2(x.permute(0, 2, 3, 1))
        y = self.norm2(x).permute(0, 3, 1, 2)
        x = x.permute(0, 3, 1, 2) + self.fc2(self.act(self.fc1(y)))
        return x.permute(0, 2, 3, 1)


@register_notrace_module
class Downsample(nn.Module):
    """LayerNorm and convolution of stride 2, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C')."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, device=None, dtype=None):
        super().__init__()
        self.norm = LayerNorm(in_dim, device=device, dtype=dtype)
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride=2, padding=(kernel_size - 1) // 2, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = x.shape[1:3]
        x = self.norm(x)
        if self.conv.kernel_size == (2, 2):
            if H % 2 or W % 2 or torch.jit.is_tracing():
                x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))  # after the norm: with zeros, not with its bias
            traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # for any batch
            if not traced and is_plain(self.conv, nn.Conv2d) and x.numel() < self.conv.weight.numel():
                return self._forward_linear(x)
        return on_nchw(self.conv, x)

    def _forward_linear(self, x: torch.Tensor) -> torch.Tensor:
        """The 2x2 convolution as a linear layer of 2x2 pixels: less work where the map is smaller than the kernel's reordering."""
        B, H, W, C = x.shape
        x = x.view(B * (H // 2), 2, W // 2, 2 * C).transpose(1, 2).reshape(B, H // 2, W // 2, 4 * C)
        return F.linear(x, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias)


class Stem(nn.Module):
    """7x7 convolution of stride 4 and LayerNorm, (B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, kernel_size=7, stride=4, padding=3, device=device, dtype=dtype)
        self.norm = LayerNorm(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # from here on every map lies channels last in memory; the published padding to a multiple of 4 is within the convolution's own
        return self.norm(self.conv(channels_last(x)).permute(0, 2, 3, 1))


class NormClassifierHead(ClassifierHead):
    """Pooling, LayerNorm, dropout, linear layer on NCHW features; without pooling and classes nothing at all."""

    def __init__(self, in_features: int, num_classes: int, pool_type: str, drop_rate: float, device=None, dtype=None):
        super().__init__(in_features, num_classes, pool_type=pool_type, drop_rate=drop_rate, device=device, dtype=dtype)
        self.norm = LayerNorm(in_features, device=device, dtype=dtype) if num_classes or pool_type else nn.Identity()

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.global_pool(x)
        if isinstance(self.norm, nn.LayerNorm):
            x = self.norm(x.unflatten(1, (-1, self.in_features))).flatten(1)  # 'catavgmax' pools to two vectors
        x = self.drop(x)
        return x if pre_logits else self.fc(x)


# Published layouts differ from ours, which is timm's, in names alone.
_BLOCKS = (
    (r'^patch_embeds\.0\.proj\.', 'stem.conv.'),
    (r'^patch_embeds\.0\.norm\.', 'stem.norm.'),
    (r'^patch_embeds\.(\d)\.proj\.', r'stages.\1.downsample.conv.'),
    (r'^patch_embeds\.(\d)\.norm\.', r'stages.\1.downsample.norm.'),
    (r'^main_blocks\.(\d)\.', r'stages.\1.blocks.'),
    (r'\.cpe\.0\.', '.cpe1.'),
    (r'\.cpe\.1\.', '.cpe2.'),
)
# dense backbones: no classifier, but norm0 to norm3, which belong to DenseBackbone (RetinaNet's have no norm0)
DENSE = Layout(
    name='a DaViT checkpoint: use vz_davit_tiny, vz_davit_small or vz_davit_base',
    marker=r'^main_blocks\.',
    absent=r'^(norms|head)\.',
    rules=_BLOCKS,
    new=r'^head\.norm\.',
)
CLASSIFIER = Layout(
    name=DENSE.name,
    marker=r'^main_blocks\.',
    own_marker=r'\.cpe1\.proj\.',
    rules=(*_BLOCKS, (r'^norms\.', 'head.norm.'), (r'^head\.(weight|bias)$', r'head.fc.\1')),
)
# the image tower of Florence-2, alone or in the whole model, as its own code names it and as transformers does
FLORENCE = Layout(
    name='the image tower of Florence-2: use vz_davit_base_fl or vz_davit_huge_fl',
    marker=r'\.(window|channel)_attn\.(fn|qkv)\.',
    rules=(
        (r'^(?!(vision_tower\.)?(convs|blocks)\.)', None),
        (r'^vision_tower\.', ''),
        (r'^convs\.(\d)\.proj\.', r'convs.\1.conv.'),
        (r'^convs\.0\.', 'stem.'),
        (r'^convs\.(\d)\.', r'stages.\1.downsample.'),
        (r'^blocks\.(\d)\.', r'stages.\1.blocks.'),
        (r'\.conv(\d)\.(fn\.dw\.)?', r'.cpe\1.proj.'),
        (r'\.(window|channel)_attn\.norm\.', '.norm1.'),
        (r'\.(window|channel)_attn\.(fn\.)?', '.attn.'),
        (r'\.ffn\.norm\.', '.norm2.'),
        (r'\.ffn\.(fn\.net\.)?', '.mlp.'),
    ),
    new=r'^head\.',
)
# the same in our names, which are timm's
TOWER = Layout(name=FLORENCE.name, marker=r'\.spatial_block\.', absent=r'^head\.fc\.', ours=True, new=r'^head\.')


class DaViT(Hierarchical):
    """Dual attention vision transformer (https://arxiv.org/abs/2204.03645).

    Takes images of any height and width from 1x1 on; maps are ceil(H / 4) .. ceil(H / 32).

    Args:
        embed_dims: per stage.
        depths: per stage, in pairs of a spatial and a channel block.
        num_heads: per stage, of the spatial attention; also the number of channel groups.
        window_size: of the spatial attention, in positions of a stage's map; (h, w) or one number.
        down_kernel_size: of the convolutions between stages, 2 or 3 (Florence-2).
        channel_attn_v2: the channel attention of Florence-2.
        cpe_act: a GELU in the position encodings (in no published model).
        named_blocks: call the blocks of a pair spatial_block and channel_block instead of 0 and 1, as timm does for Florence-2.
        drop_path_rate: of the last block; rates grow block by block, as published (timm's davit_*: pair by pair).

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (DENSE, CLASSIFIER, FLORENCE, TOWER)
    dense_norm_eps = 1e-5  # of norm0 to norm3 of the published dense backbones

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, ...] = (96, 192, 384, 768),
            depths: tuple[int, ...] = (1, 1, 3, 1),
            num_heads: tuple[int, ...] = (3, 6, 12, 24),
            window_size: int | tuple[int, int] = 7,
            mlp_ratio: float = 4.,
            down_kernel_size: int = 2,
            channel_attn_v2: bool = False,
            cpe_act: bool = False,
            named_blocks: bool = False,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, num_heads)
        check_ratios(embed_dims, mlp_ratio=mlp_ratio)
        window = check_pair('window_size', window_size)
        if down_kernel_size not in (2, 3):
            raise ValueError(f'down_kernel_size={down_kernel_size}: expected 2, or 3 as in Florence-2.')
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims)
        dd = {'device': device, 'dtype': dtype}

        self.stem = Stem(in_chans, embed_dims[0], **dd)
        names = ('spatial_block', 'channel_block') if named_blocks else ('0', '1')
        drop_path = calculate_drop_path_rates(drop_path_rate, [2 * depth for depth in depths], stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            pairs = [nn.Sequential(OrderedDict(zip(names, (
                SpatialBlock(dim, num_heads[i], window, mlp_ratio, cpe_act, rate, **dd),
                ChannelBlock(dim, num_heads[i], channel_attn_v2, mlp_ratio, cpe_act, next_rate, **dd),
            ), strict=True))) for rate, next_rate in zip(drop_path[i][::2], drop_path[i][1::2], strict=True)]
            stages.append(Stage(Downsample(embed_dims[i - 1], dim, down_kernel_size, **dd) if i else nn.Identity(), pairs))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()  # the final norm acts on the pooled features, in the head
        self.build_head(**dd)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                nn.init.zeros_(module.bias)

    def make_head(self, **factory_kwargs) -> nn.Module:
        head = NormClassifierHead(self.num_features, self.num_classes, self.global_pool, self.drop_rate, **factory_kwargs)
        trained = getattr(getattr(self, 'head', None), 'norm', None)
        if type(trained) is type(head.norm) and self.head.in_features == head.in_features:
            head.norm = trained  # a new classifier on the same features
        return head


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.95, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.conv', 'classifier': 'head.fc', **kwargs,
    }


def _hub(hf_hub_id: str, **kwargs) -> dict:
    return _cfg(
        hf_hub_id=hf_hub_id, origin_url='https://github.com/dingmyu/davit', paper_ids='arXiv:2204.03645',
        license='apache-2.0 (timm\'s conversion; the source is MIT)', **kwargs)


def _tower(hf_hub_id: str) -> dict:
    return _cfg(
        hf_hub_id=hf_hub_id, input_size=(3, 768, 768), pool_size=(24, 24), license='mit',
        description='image tower without a classifier: `head` stays as it was initialised')


default_cfgs = generate_default_cfgs({
    'vz_davit_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'vz_davit_fl_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'vz_davit_tiny.msft_in1k': _hub('timm/davit_tiny.msft_in1k'),
    'vz_davit_small.msft_in1k': _hub('timm/davit_small.msft_in1k'),
    'vz_davit_base.msft_in1k': _hub('timm/davit_base.msft_in1k'),
    'vz_davit_large.untrained': _cfg(
        input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=0.9, description='weights were announced and never released'),
    'vz_davit_base_fl.msft_florence2': _tower('microsoft/Florence-2-base'),
    'vz_davit_huge_fl.msft_florence2': _tower('microsoft/Florence-2-large'),
})

_BASE = dict(embed_dims=(128, 256, 512, 1024), depths=(1, 1, 9, 1), num_heads=(4, 8, 16, 32))
_MICRO = dict(embed_dims=(32, 64, 96, 160), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 5))
_FLORENCE = dict(window_size=12, down_kernel_size=3, channel_attn_v2=True, named_blocks=True)
VARIANTS = {
    'vz_davit_micro': _MICRO,
    'vz_davit_fl_micro': dict(embed_dims=(16, 48, 96, 160), depths=(1, 1, 1, 1), num_heads=(1, 3, 6, 10), **_FLORENCE),
    'vz_davit_tiny': dict(embed_dims=(96, 192, 384, 768), depths=(1, 1, 3, 1), num_heads=(3, 6, 12, 24)),
    'vz_davit_small': dict(embed_dims=(96, 192, 384, 768), depths=(1, 1, 9, 1), num_heads=(3, 6, 12, 24)),
    'vz_davit_base': _BASE,
    'vz_davit_large': dict(embed_dims=(192, 384, 768, 1536), depths=(1, 1, 9, 1), num_heads=(6, 12, 24, 48), window_size=12),
    'vz_davit_base_fl': {**_BASE, **_FLORENCE},
    'vz_davit_huge_fl': dict(embed_dims=(256, 512, 1024, 2048), depths=(1, 1, 9, 1), num_heads=(8, 16, 32, 64), **_FLORENCE),
}


def _create_davit(variant: str, pretrained: bool, **kwargs) -> DaViT:
    return build_model(DaViT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def vz_davit_micro(pretrained: bool = False, **kwargs) -> DaViT:
    """Our own, for tests and tutorials."""
    return _create_davit('vz_davit_micro', pretrained, **kwargs)


@register_model
def vz_davit_fl_micro(pretrained: bool = False, **kwargs) -> DaViT:
    """Our own with the options of Florence-2, for tests and tutorials."""
    return _create_davit('vz_davit_fl_micro', pretrained, **kwargs)


@register_model
def vz_davit_tiny(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-T: 28.4 M parameters, 4.5 GFLOPs, 82.8 % ImageNet top-1 (paper)."""
    return _create_davit('vz_davit_tiny', pretrained, **kwargs)


@register_model
def vz_davit_small(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-S: 49.7 M parameters, 8.8 GFLOPs, 84.2 % ImageNet top-1 (paper)."""
    return _create_davit('vz_davit_small', pretrained, **kwargs)


@register_model
def vz_davit_base(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-B: 88.0 M parameters, 15.5 GFLOPs, 84.6 % ImageNet top-1 (paper)."""
    return _create_davit('vz_davit_base', pretrained, **kwargs)


@register_model
def vz_davit_large(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-L: 196.8 M parameters, 103 GFLOPs at 384. As published with window 12; `window_size=7` is timm's davit_large."""
    return _create_davit('vz_davit_large', pretrained, **kwargs)


@register_model
def vz_davit_base_fl(pretrained: bool = False, **kwargs) -> DaViT:
    """Image tower of Florence-2-base: 90.4 M parameters without the classifier, for which no weights exist."""
    return _create_davit('vz_davit_base_fl', pretrained, **kwargs)


@register_model
def vz_davit_huge_fl(pretrained: bool = False, **kwargs) -> DaViT:
    """Image tower of Florence-2-large: 360.6 M parameters without the classifier, for which no weights exist."""
    return _create_davit('vz_davit_huge_fl', pretrained, **kwargs)
