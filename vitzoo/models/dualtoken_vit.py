"""DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion, Chu et al., https://arxiv.org/abs/2309.12424

Three stages at strides 8, 16 and 32. Each block adds what a ConvNeXt block sees nearby to what the image sends through a grid of 7 x 7
global tokens, which keep their places and go on from block to block through all stages.

**A reconstruction**: no code and no weights were published, and what was public of the paper leaves parts open. The table in
docs/dualtoken_vit.md says which parts are the paper's, which are those of LightViT, on which it builds (https://arxiv.org/abs/2207.05557),
and which are our choice. The widths and depths are ours, fitted to the size of the published models. The paper's accuracy is not ours.

Shapes: B batch, H W map, C channels, T = 7 * 7 global tokens.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerScale, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from timm.models._manipulate import checkpoint

from ..arguments import check_range, check_types
from ..layers import (
    MOST,
    Gelu,
    SoftmaxAttention,
    channels_last,
    check_choice,
    check_ratios,
    check_stages,
    fold_batch_norm,
    fold_layer_scale,
    join_heads,
    on_nchw,
    record,
    recording,
    resize_tokens,
    split_heads,
)
from ..weights.layout import Layout
from ._builder import build_model
from ._hierarchical import Hierarchical

__all__ = ['DualTokenViT']


def halve(x: torch.Tensor) -> torch.Tensor:
    """Map (B, H, W, C) -> means of 2 x 2 positions (B, ceil(H / 2), ceil(W / 2), C); an odd side is resampled."""
    _, H, W, C = x.shape
    if H % 2 == 0 and W % 2 == 0:
        return F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    size = (H + 1) // 2, (W + 1) // 2  # a division of what is positive: in a traced graph others round towards 0
    return resize_tokens(x.flatten(1, 2), (H, W), size).reshape(-1, *size, C)


def pad_to_even(x: torch.Tensor) -> torch.Tensor:
    """Zeros at the right and bottom of a map (B, H, W, C) with an odd side."""
    H, W = x.shape[1:3]
    return F.pad(x, (0, 0, 0, W % 2, 0, H % 2)) if H % 2 or W % 2 else x


class Attention(nn.Module):
    """Queries (B, Q, C) attend to tokens (B, K, C) -> (B, Q, C)."""

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, **dd)
        self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.sdp_attn = SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        k, v = self.kv(tokens).chunk(2, dim=-1)
        q, k, v = (split_heads(y, self.num_heads) for y in (self.q(x), k, v))
        return self.proj(join_heads(self.sdp_attn(q, k, v)))

    def strongest(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The token that each query looks at most, mean over heads, int64 (B, Q)."""
        q, k = (split_heads(y, self.num_heads) for y in (self.q(x), self.kv(tokens).chunk(2, dim=-1)[0]))
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1).mean(1).argmax(-1)


class ConvEncoder(nn.Module):
    """A ConvNeXt block on a map (B, H, W, C)."""

    def __init__(self, dim: int, hidden_dim: int, init_values: float | None, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.act = Gelu()
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)
        self.ls = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(on_nchw(self.dwconv, x).contiguous())
        return self.drop_path(self.ls(self.fc2(self.act(self.fc1(y))))) + x

    def fuse(self) -> nn.Module:
        """Fold the layer scale into fc2 (inference only)."""
        self.ls = fold_layer_scale(self.fc2, self.ls)
        return self


@register_notrace_module
class StepwiseDownsample(nn.Module):
    """Map (B, H, W, C) -> tokens (B, h * w, C): `steps` times a depthwise 3x3 convolution and a halving.

    At 224 x 224 that ends at the grid of global tokens; a map that ends elsewhere is resampled to it.
    """

    def __init__(self, dim: int, steps: int, grid: tuple[int, int], device=None, dtype=None):
        super().__init__()
        self.grid = grid
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, device=device, dtype=dtype) for _ in range(steps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = halve(on_nchw(conv, x))
        return resize_tokens(x.flatten(1, 2), tuple(x.shape[1:3]), self.grid)


class TokenMlp(nn.Module):
    """Linear, GELU, Linear on global tokens (B, T, C): over their places ('mix'), or over their channels ('normal')."""

    def __init__(self, dim: int, num_tokens: int, kind: str, device=None, dtype=None):
        super().__init__()
        self.kind = kind
        width = num_tokens if kind == 'mix' else dim
        self.fc1 = nn.Linear(width, width, device=device, dtype=dtype)
        self.act = Gelu()
        self.fc2 = nn.Linear(width, width, device=device, dtype=dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.kind == 'normal':
            return self.fc2(self.act(self.fc1(tokens)))
        return self.fc2(self.act(self.fc1(tokens.transpose(1, 2)))).transpose(1, 2)


class BiDimAttn(nn.Module):
    """LightViT's bi-dimensional attention: gates a map (B, H, W, C) by channel and by position."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        reduced = max(dim // 4, 1)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.global_reduce = nn.Linear(dim, reduced, **dd)
        self.local_reduce = nn.Linear(dim, reduced, **dd)
        self.channel_select = nn.Linear(reduced, dim, **dd)
        self.spatial_select = nn.Linear(2 * reduced, 1, **dd)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        whole = self.act(self.global_reduce(y.mean((1, 2), keepdim=True)))
        local = self.act(self.local_reduce(y))
        both = torch.cat([local, whole.expand_as(local)], dim=-1)
        return x * self.channel_select(whole).sigmoid() * self.spatial_select(both).sigmoid()


class Ffn(nn.Module):
    """Linear, GELU, Linear and gates on a map (B, H, W, C)."""

    def __init__(self, dim: int, hidden_dim: int, device=None, dtype=None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.act = Gelu()
        self.fc2 = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.attn = BiDimAttn(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(self.fc2(self.act(self.fc1(x))))


@register_notrace_module
class Block(nn.Module):
    """Local and global information of a map (B, H, W, C), the latter through global tokens (B, T, C); both come out updated."""

    def __init__(self, dim: int, num_heads: int, steps: int, grid: tuple[int, int], conv_ratio: float, mlp_ratio: float, token_mlp: str,
                 init_values: float | None, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.local = ConvEncoder(dim, int(dim * conv_ratio), init_values, drop_path, **dd)
        self.downsample = StepwiseDownsample(dim, steps, grid, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.aggregate = Attention(dim, num_heads, **dd)
        self.token_mlp = TokenMlp(dim, grid[0] * grid[1], token_mlp, **dd)
        self.fusion = nn.Parameter(torch.full((2,), 0.5, **dd))  # weights of what the image says, and of what the tokens were
        self.broadcast = Attention(dim, num_heads, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Ffn(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.local(x)
        seen = self.norm1(self.downsample(x))
        image, before = self.fusion.unbind()
        tokens = image * self.aggregate(seen, seen) + before * self.token_mlp(tokens)
        pixels = x.flatten(1, 2)
        if recording():
            record(self, 'global tokens', self.broadcast.strongest(pixels, tokens).view(x.shape[:3]), tokens.shape[1])
        spread = self.broadcast(pixels, tokens).reshape(x.shape)
        x = self.drop_path(spread) + x
        return self.drop_path(self.mlp(self.norm2(x))) + x, tokens


@register_notrace_module
class MergePatch(nn.Module):
    """Four neighbours become one, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C'), and tokens (B, T, C) -> (B, T, C')."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(4 * in_dim, eps=1e-5, **dd)
        self.reduction = nn.Linear(4 * in_dim, dim, bias=False, **dd)
        self.shortcut = nn.Linear(in_dim, dim, bias=False, **dd)
        self.token_norm = nn.LayerNorm(in_dim, eps=1e-5, **dd)
        self.token_proj = nn.Linear(in_dim, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = pad_to_even(x)
        phases = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1)
        largest = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()
        return self.reduction(self.norm(phases)) + self.shortcut(largest), self.token_proj(self.token_norm(tokens))


class DualStage(nn.Module):
    """A merge (None in the first stage) and blocks, on a map (B, H, W, C) and tokens (B, T, C)."""

    def __init__(self, downsample: MergePatch | None, blocks: list[Block]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Identity()  # where hooks and graphs find the map

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.downsample is not None:
            x, tokens = self.downsample(x, tokens)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, tokens = checkpoint(block, x, tokens)
            else:
                x, tokens = block(x, tokens)
        return self.out(x), tokens


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm and GELU on (B, C, H, W)."""

    def __init__(self, in_dim: int, dim: int, stride: int, groups: int = 1, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(dim, device=device, dtype=dtype)
        self.act = Gelu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))

    def fuse(self) -> nn.Module:
        """Fold the batch norm into the convolution (inference only)."""
        self.conv, self.norm = fold_batch_norm(self.conv, self.norm)
        return self


class Stem(nn.Module):
    """LightViT's: (B, in_chans, H, W) -> (B, ceil(H / 8), ceil(W / 8), C)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        half = dim // 2
        self.conv1 = ConvNorm(in_chans, half, 2, **dd)
        self.conv2 = ConvNorm(half, half, 1, half, **dd)
        self.conv3 = ConvNorm(half, half, 1, half, **dd)
        self.conv4 = ConvNorm(half, half, 2, half, **dd)
        self.proj = nn.Conv2d(half, dim, kernel_size=3, stride=2, padding=1, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv4(self.conv3(self.conv2(self.conv1(channels_last(x)))))
        return self.norm(self.proj(x).permute(0, 2, 3, 1).contiguous())


class Neck(nn.Module):
    """Norm of the last map, projection to the classifier's width, norm and GELU; (B, H, W, C) -> (B, H, W, C')."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(in_dim, eps=1e-6, **dd)
        self.fc = nn.Linear(in_dim, dim, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.act = Gelu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm2(self.fc(self.norm(x))))


# Nothing was published; other families know a file in our names by this.
OWN = Layout(
    name='a DualToken-ViT checkpoint: use dualtoken_vit_tiny or dualtoken_vit_small',
    marker=r'(?!)',  # no name
    own_marker=r'^stages\.\d\.blocks\.\d+\.fusion$',
)


class DualTokenViT(Hierarchical):
    """Vision transformer with dual token fusion, reconstructed (https://arxiv.org/abs/2309.12424).

    Takes images of any height and width from 1x1 on; maps are ceil(H / 8), ceil(H / 16), ceil(H / 32). The grid of global tokens stays the
    same at all sizes.

    Args:
        embed_dims, depths, num_heads: per stage.
        conv_ratio: hidden width of the ConvNeXt blocks, as a multiple of their width, per stage.
        mlp_ratio: that of the MLPs, per stage.
        token_mlp: 'mix' for an MLP over the places of the global tokens, 'normal' for one over their channels.
        global_size: rows and columns of the grid of global tokens.
        init_values: layer scale of the ConvNeXt blocks, None for none.
        projection: width of the classifier's input.

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (OWN,)
    final = 'neck'
    exportable_dynamic_size = 'its maps are resampled to the grid of global tokens by tables for one size'  # read by vitzoo.export

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, ...] = (64, 128, 256),
            depths: tuple[int, ...] = (2, 6, 4),
            num_heads: tuple[int, ...] = (2, 4, 8),
            conv_ratio: tuple[float, ...] = (4., 4., 4.),
            mlp_ratio: tuple[float, ...] = (8., 4., 4.),
            token_mlp: str = 'mix',
            global_size: int = 7,
            init_values: float | None = 1e-6,
            projection: int = 1280,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, num_heads, even=True, conv_ratio=conv_ratio, mlp_ratio=mlp_ratio)
        for dim, conv, mlp in zip(embed_dims, conv_ratio, mlp_ratio, strict=True):
            check_ratios((dim,), conv_ratio=conv, mlp_ratio=mlp)
        check_choice('token_mlp', token_mlp, 'mix', 'normal')
        check_range(1, 64, global_size=global_size)
        check_range(1, MOST, projection=projection)
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims, num_features=projection, first_stride=8)
        dd = {'device': device, 'dtype': dtype}
        for info in self.feature_info:
            info['module'] += '.out'

        self.stem = Stem(in_chans, embed_dims[0], **dd)
        self.tokens = nn.Parameter(torch.zeros(1, global_size ** 2, embed_dims[0], **dd))
        drop_path = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            steps = len(embed_dims) - 1 - i  # to the grid of the last stage
            blocks = [Block(dim, num_heads[i], steps, (global_size, global_size), conv_ratio[i], mlp_ratio[i], token_mlp, init_values, rate,
                            **dd) for rate in drop_path[i]]
            stages.append(DualStage(MergePatch(embed_dims[i - 1], dim, **dd) if i else None, blocks))
        self.stages = nn.Sequential(*stages)
        self.neck = Neck(embed_dims[-1], projection, **dd)
        self.build_head(**dd)
        self._init_weights()

    def _init_weights(self):
        trunc_normal_(self.tokens, std=.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'tokens'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        matcher = super().group_matcher(coarse)
        return {**matcher, 'stem': r'^(?:stem|tokens)'}

    def forward_stem(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        return x, self.tokens.repeat(x.shape[0], 1, 1)

    def forward_stage(self, stage: nn.Module, x: tuple, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        return stage(*x)

    def to_map(self, x: tuple) -> torch.Tensor:
        return x[0]


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.conv1.conv', 'classifier': 'head.fc', 'license': 'apache-2.0', **kwargs,
    }


default_cfgs = generate_default_cfgs({
    'dualtoken_vit_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights'),
    'dualtoken_vit_tiny.untrained': _cfg(description='a reconstruction; no weights', paper_ids='arXiv:2309.12424'),
    'dualtoken_vit_small.untrained': _cfg(description='a reconstruction; no weights', paper_ids='arXiv:2309.12424'),
})

VARIANTS = {
    'dualtoken_vit_micro': dict(embed_dims=(48, 96, 144), depths=(1, 2, 1), num_heads=(2, 4, 6), mlp_ratio=(4., 4., 4.),
                                projection=256),
    'dualtoken_vit_tiny': dict(embed_dims=(48, 96, 192), depths=(2, 5, 3), num_heads=(2, 4, 8)),
    'dualtoken_vit_small': dict(embed_dims=(64, 128, 256), depths=(2, 6, 4), num_heads=(2, 4, 8)),
}


def _create_dualtoken_vit(variant: str, pretrained: bool, **kwargs) -> DualTokenViT:
    return build_model(DualTokenViT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def dualtoken_vit_micro(pretrained: bool = False, **kwargs) -> DualTokenViT:
    """Our own, for tests and tutorials."""
    return _create_dualtoken_vit('dualtoken_vit_micro', pretrained, **kwargs)


@register_model
def dualtoken_vit_tiny(pretrained: bool = False, **kwargs) -> DualTokenViT:
    """DualToken-ViT-T (mix), a reconstruction of the published size, 0.5 GFLOPs."""
    return _create_dualtoken_vit('dualtoken_vit_tiny', pretrained, **kwargs)


@register_model
def dualtoken_vit_small(pretrained: bool = False, **kwargs) -> DualTokenViT:
    """DualToken-ViT-S (mix), a reconstruction of the published size, 1.0 GFLOPs."""
    return _create_dualtoken_vit('dualtoken_vit_small', pretrained, **kwargs)
