"""SViT: Vision Transformer with Super Token Sampling, Huang et al., CVPR 2023, https://arxiv.org/abs/2211.11167

A four-stage pyramid whose early stages attend globally without quadratic cost: pixels are softly assigned to the nine
nearest of a coarse grid of super tokens, the super tokens attend to each other, and their outputs are spread back with
the same assignment. Published as SViT-S/B/L; its repository calls the functions stvit_small/base/large (not to be
confused with the semantic-token STViT).

Shapes: B batch, H W map, C channels, h w super token size, M = rows * cols super tokens, P = h * w pixels of a cell.
"""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerScale, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_module

from ..arguments import check_range, check_types
from ..layers import (
    MOST,
    ConvMlp,
    Downsample,
    Gelu,
    Projection,
    SoftmaxAttention,
    attend_unscaled,
    channels_last,
    check_pair,
    check_ratios,
    check_stages,
    fold_identity,
    fold_layer_scale,
    fold_norm_before,
    join_heads,
    no_conv,
    on_nchw,
    per_size,
    pointwise_conv,
    record,
    recording,
    residual_conv,
    split_heads,
    split_qkv,
)
from ..weights.layout import Layout
from ._builder import build_model
from ._hierarchical import Hierarchical, Stage

__all__ = ['SViT']


@per_size
def neighbour_tables(rows: int, cols: int) -> np.ndarray:
    """Gather indices of the 3x3 neighbourhoods of a rows x cols grid, int64 (2, M * 9).

    Row 0, to spread: entry 9 * m + k is the cell at offset k (row-major, (-1, -1) first) of cell m; M where that lies outside.
    Row 1, to collect: entry 9 * m + k is the pair 9 * m' + k' for which m is the neighbour k' of m'; 9 * M where there is none.
    """
    m, k = np.arange(rows * cols)[:, None], np.arange(9)
    r, c = m // cols + k // 3 - 1, m % cols + k % 3 - 1
    inside = (r >= 0) & (r < rows) & (c >= 0) & (c < cols)
    neighbour = r * cols + c
    spread = np.where(inside, neighbour, rows * cols)
    collect = np.where(inside, 9 * neighbour + 8 - k, 9 * rows * cols)  # the cell at offset k sees m at 8 - k
    return np.stack([spread.ravel(), collect.ravel()])


def gather_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, N, ...) -> (B, len(index), ...); index N reads a row of zeros."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, 1)).index_select(1, index)


def associate(pixels: torch.Tensor, tokens: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Soft assignment of the pixels of each cell to the super tokens of its 3x3 neighbourhood.

    pixels (B, M, P, C), tokens (B, M, C) -> (B * M, 9, P), summing to 1 over the nine. Neighbours outside the grid are zero
    vectors: they take part in the softmax with logit 0, and the mass they get is lost (as published). Paper, equation 4.
    """
    B, M, P, C = pixels.shape
    near = gather_rows(tokens * C ** -0.5, spread).reshape(B * M, 9, C)
    logits = torch.bmm(near, pixels.flatten(0, 1).transpose(1, 2))
    return logits.softmax(dim=1, dtype=torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else None)


def super_tokens(pixels: torch.Tensor, n_iter: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the super tokens: pixels (B, M, P, C) -> tokens (B, M, C), association (B * M, 9, P). Paper, equations 3 to 6.

    The association is constant in the backward pass (as published): gradients reach the pixels through the weighted mean.
    """
    B, M, P, C = pixels.shape
    spread, collect = tables
    tokens = pixels.detach().mean(2)
    for _ in range(n_iter):
        with torch.no_grad():
            association = associate(pixels, tokens, spread)
            # padded pixels count in the mass, with 1/9 for each slot, and add nothing to the sum
            mass = association.sum(2, keepdim=True)
            association = association.to(pixels.dtype)
        weighted = torch.bmm(association, pixels.flatten(0, 1))
        pairs = torch.cat([weighted, mass], dim=2).reshape(B, M * 9, C + 1)
        total, mass = gather_rows(pairs, collect).reshape(B, M, 9, C + 1).sum(2).split([C, 1], dim=2)
        tokens = (total / (mass + 1e-12)).to(pixels.dtype)
    return tokens, association


def strongest(association: torch.Tensor, spread: torch.Tensor, rows: int, cols: int, h: int, w: int) -> torch.Tensor:
    """The super token that each pixel belongs to most, int64 (B, rows * h, cols * w); neighbours outside the grid are none."""
    near = spread.view(rows * cols, 9)
    association = association.view(-1, rows * cols, 9, h * w).masked_fill((near == rows * cols)[..., None], -1)
    labels = near.expand(len(association), -1, -1).gather(2, association.argmax(2))
    return labels.view(-1, rows, cols, h, w).transpose(2, 3).reshape(-1, rows * h, cols * w)


class Attention(nn.Module):
    """Multi-head self-attention of (B, N, C) tokens; qkv rows ordered q, k, v, then head, then head channel."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.sdp_attn = SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        # (B, heads, N, d) each
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(join_heads(self.sdp_attn(q, k, v)))

    def deploy(self, runtime: str) -> nn.Module:
        """With one layer for each of q, k, v. Raises ValueError if the layers are more than their weight."""
        return DeployedAttention(self)


class DeployedAttention(nn.Module):
    """`Attention` that splits nothing, see `split_qkv`."""

    def __init__(self, attn: Attention):
        super().__init__()
        self.num_heads = attn.num_heads
        self.q, self.k, self.v, self.proj = split_qkv([attn.qkv], attn.proj, attn.num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split_heads(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return self.proj(join_heads(attend_unscaled(q, k, v)))


@register_notrace_module
class SuperTokenAttention(nn.Module):
    """Attention of a (B, H, W, C) map through super tokens of size (h, w); with size (1, 1) plain attention of all positions."""

    def __init__(self, dim: int, num_heads: int, stoken_size: tuple[int, int] = (1, 1), n_iter: int = 1, qkv_bias: bool = True,
                 device=None, dtype=None):
        super().__init__()
        self.stoken_size = stoken_size
        self.n_iter = n_iter
        self.attn = Attention(dim, num_heads, qkv_bias, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        h, w = self.stoken_size
        if (h, w) == (1, 1):
            return self.attn(x.reshape(B, H * W, C)).reshape(B, H, W, C)
        if H % h or W % w:
            x = F.pad(x, (0, 0, 0, -W % w, 0, -H % h))
        rows, cols = x.shape[1] // h, x.shape[2] // w
        M = rows * cols
        tables = neighbour_tables(rows, cols, like=x)
        pixels = x.reshape(B, rows, h, cols, w, C).transpose(2, 3).contiguous().view(B, M, h * w, C)

        tokens, association = super_tokens(pixels, self.n_iter, tables)
        if recording():
            record(self, 'super tokens', strongest(association, tables[0], rows, cols, h, w)[:, :H, :W], M)
        near = gather_rows(self.attn(tokens), tables[0]).reshape(B * M, 9, C)
        x = torch.bmm(association.transpose(1, 2), near)

        x = x.reshape(B, rows, cols, h, w, C).transpose(2, 3).contiguous().view(B, rows * h, cols * w, C)
        return x[:, :H, :W] if H % h or W % w else x


class Block(nn.Module):
    """Convolutional position embedding, super token attention, convolutional MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, num_heads: int, stoken_size: tuple[int, int], n_iter: int, mlp_ratio: float, qkv_bias: bool,
                 init_values: float | None, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.pos_embed = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = SuperTokenAttention(dim, num_heads, stoken_size, n_iter, qkv_bias, **dd)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = residual_conv(self.pos_embed, x)
        # the sums take the memory layout of their first operand: channels last
        x = self.drop_path(self.ls1(self.attn(self.norm1(x)))) + x
        x = self.drop_path(self.ls2(self.mlp(on_nchw(self.norm2, x)))) + x
        return x

    def fuse(self) -> nn.Module:
        """Fold norm2 into fc1, layer scales into the projections before them, the identity into a kernel (inference only)."""
        self.pos_embed = fold_identity(self.pos_embed)
        self.norm2 = fold_norm_before(self.norm2, self.mlp.fc1)
        self.ls1 = fold_layer_scale(self.attn.attn.proj, self.ls1)
        self.ls2 = fold_layer_scale(self.mlp.fc2, self.ls2)
        return self

    def deploy(self, runtime: str) -> nn.Module:
        """As a chain of convolutions, if all is folded and nothing is to be quantised."""
        folded = runtime != 'onnx-int8' and all(type(layer) is nn.Identity for layer in (self.norm2, self.ls1, self.ls2))
        return DeployedBlock(self) if folded else self


class DeployedBlock(nn.Module):
    """`Block` whose map between the layers is NCHW, where the runtime adds what is kept within convolutions; (B, H, W, C) in and out."""

    def __init__(self, block: Block):
        super().__init__()
        self.pos_embed = block.pos_embed  # with the identity
        self.norm1 = block.norm1
        self.attn = block.attn
        if self.attn.stoken_size == (1, 1):
            self.proj, self.attn.attn.proj = pointwise_conv(self.attn.attn.proj), nn.Identity()
        else:
            self.proj = no_conv(self.pos_embed.in_channels)
        self.mlp = block.mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pos_embed(x.permute(0, 3, 1, 2))
        y = self.attn(self.norm1(x.permute(0, 2, 3, 1)))
        x = x + self.proj(y.permute(0, 3, 1, 2))
        x = x + self.mlp.fc2(self.mlp.dwconv(self.mlp.act(self.mlp.fc1(x))))
        return x.permute(0, 2, 3, 1)


class Stem(nn.Sequential):
    """Four 3x3 convolutions, each followed by GELU and batch norm; (B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        layers = []
        for in_dim, out_dim, stride in ((in_chans, dim // 2, 2), (dim // 2, dim // 2, 1), (dim // 2, dim, 2), (dim, dim, 1)):
            layers += [nn.Conv2d(in_dim, out_dim, kernel_size=3, stride=stride, padding=1, device=device, dtype=dtype),
                       Gelu(), nn.BatchNorm2d(out_dim, device=device, dtype=dtype)]
        super().__init__(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # from here on every map lies channels last in memory
        return super().forward(channels_last(x)).permute(0, 2, 3, 1)


def _split_heads(qkv: torch.Tensor, model: nn.Module, name: str) -> torch.Tensor:
    """Published qkv rows are ordered head, then q, k, v; ours q, k, v, then head."""
    heads = model.get_submodule(name.rsplit('.qkv.', 1)[0]).num_heads
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)


# Published names -> ours, applied in turn to every name; None drops it.
PUBLISHED = Layout(
    name='a super-token checkpoint: use svit_small, svit_base or svit_large',
    marker=r'\.stoken_refine\.|\.attn\.unfold\.weights$',
    own_marker=r'^stages\.\d\.blocks\.\d+\.attn\.attn\.qkv\.',
    rules=(
        (r'^patch_embed\.proj\.', 'stem.'),
        (r'^layers\.0\.downsample\.proj', 'layers.1.downsample'),
        (r'^layers\.1\.downsample\.proj', 'layers.2.downsample'),
        (r'^layers\.2\.downsample\.proj', 'layers.3.downsample'),
        (r'\.downsample\.0\.', '.downsample.conv.'),
        (r'\.downsample\.1\.', '.downsample.norm.'),
        (r'^layers\.', 'stages.'),
        (r'\.pos_embed\.conv\.', '.pos_embed.'),
        (r'\.norm1\.norm\.', '.norm1.'),
        (r'\.stoken_refine\.', '.attn.'),
        (r'\.gamma_(\d)$', r'.ls\1.gamma'),
        (r'\.mlp2\.conv\.conv\.', '.mlp.dwconv.'),
        (r'\.mlp2\.', '.mlp.'),
        (r'^proj\.', 'proj.fc.'),
        (r'^norm\.', 'proj.norm.'),
        (r'^head\.', 'head.fc.'),
    ),
    values=(
        (r'\.qkv\.(weight|bias)$', _split_heads),
    ),
    constants=(
        (r'\.attn\.(un)?fold\.weights$', torch.eye(9, device='cpu').reshape(9, 1, 3, 3)),
    ),
)


class SViT(Hierarchical):
    """Vision Transformer with super token sampling (https://arxiv.org/abs/2211.11167).

    Takes images of any height and width from 1x1 on; maps are ceil(H / 4) .. ceil(H / 32).

    Args:
        embed_dims, depths, num_heads: per stage.
        stoken_size: super token size per stage, in positions of that stage's map; (h, w) or one number; 1 is plain attention.
            Larger ones in late stages (the published source has 16, 8, 2, 1 for 512x512) keep large images affordable.
        n_iter: rounds of association and update per stage (1 in all published models).
        init_values: layer scale per stage, None for none.
        projection: width of the classifier's input.

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (PUBLISHED,)
    final = 'proj'
    exportable_dynamic_size = 'its neighbourhood tables are made for one size'  # read by vitzoo.export

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, ...] = (64, 128, 320, 512),
            depths: tuple[int, ...] = (3, 5, 9, 3),
            num_heads: tuple[int, ...] = (1, 2, 5, 8),
            stoken_size: tuple[int | tuple[int, int], ...] = (8, 4, 1, 1),
            n_iter: tuple[int, ...] = (1, 1, 1, 1),
            mlp_ratio: float = 4.,
            qkv_bias: bool = True,
            init_values: tuple[float | None, ...] = (None, None, None, None),
            projection: int = 1024,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, num_heads, even=True, stoken_size=stoken_size, n_iter=n_iter, init_values=init_values)
        check_ratios(embed_dims, mlp_ratio=mlp_ratio)
        check_range(1, MOST, projection=projection)
        check_range(1, 100, n_iter=n_iter)
        stoken_size = tuple(check_pair('stoken_size', size) for size in stoken_size)
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims, num_features=projection)
        dd = {'device': device, 'dtype': dtype}

        self.stem = Stem(in_chans, embed_dims[0], **dd)
        drop_path = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks = [Block(dim, num_heads[i], stoken_size[i], n_iter[i], mlp_ratio, qkv_bias, init_values[i], rate, **dd)
                      for rate in drop_path[i]]
            stages.append(Stage(Downsample(embed_dims[i - 1], dim, **dd) if i else nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.proj = Projection(embed_dims[-1], projection, **dd)
        self.build_head(**dd)
        self._init_head()

    def _init_head(self):
        # all convolutions and linear layers but the classifier were convolutions in the published code and keep torch's default
        if isinstance(self.head.fc, nn.Linear):
            trunc_normal_(self.head.fc.weight, std=.02)
            nn.init.zeros_(self.head.fc.bias)


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.0', 'classifier': 'head.fc', **kwargs,
    }


def _share(filename: str, **kwargs) -> dict:
    """Published on a share that no program can download from."""
    return _cfg(
        origin_url='https://drive.google.com/drive/folders/1uaT5OarQd9iPrnFufHocHpM3zhyTcetB', notes=(f'file: {filename}',),
        paper_ids='arXiv:2211.11167', license='unclear (the source header says MIT, there is no licence file)', **kwargs)


_384 = dict(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0)
default_cfgs = generate_default_cfgs({
    'svit_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'svit_small.in1k': _share('stvit-small-224.pth'),
    'svit_small.in1k_384': _share('stvit-small-384.pth', **_384),
    'svit_base.in1k': _share('stvit-base-224.pth'),
    'svit_base.in1k_384': _share('stvit-base-384.pth', **_384),
    'svit_large.in1k': _share('stvit-large-224.pth'),
    'svit_large.in1k_384': _share('stvit-large-384.pth', **_384),
})

VARIANTS = {
    'svit_micro': dict(embed_dims=(32, 64, 128, 192), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 6), projection=256),
    'svit_small': dict(embed_dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8)),
    'svit_base': dict(embed_dims=(96, 192, 384, 512), depths=(4, 6, 14, 6), num_heads=(2, 3, 6, 8), init_values=(None, None, 1e-6, 1e-6)),
    'svit_large': dict(embed_dims=(96, 192, 448, 640), depths=(4, 7, 19, 8), num_heads=(2, 3, 7, 10), init_values=(None, None, 1e-6, 1e-6)),
}


def _create_svit(variant: str, pretrained: bool, **kwargs) -> SViT:
    return build_model(SViT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def svit_micro(pretrained: bool = False, **kwargs) -> SViT:
    """Our own, 1.6 M parameters, for tests and tutorials."""
    return _create_svit('svit_micro', pretrained, **kwargs)


@register_model
def svit_small(pretrained: bool = False, **kwargs) -> SViT:
    """SViT-S: 25.5 M parameters, 4.4 GFLOPs, 83.6 % ImageNet top-1 (paper)."""
    return _create_svit('svit_small', pretrained, **kwargs)


@register_model
def svit_base(pretrained: bool = False, **kwargs) -> SViT:
    """SViT-B: 51.7 M parameters, 9.9 GFLOPs, 84.8 % ImageNet top-1 (paper)."""
    return _create_svit('svit_base', pretrained, **kwargs)


@register_model
def svit_large(pretrained: bool = False, **kwargs) -> SViT:
    """SViT-L: 95.0 M parameters, 15.6 GFLOPs, 85.3 % ImageNet top-1 (paper)."""
    return _create_svit('svit_large', pretrained, **kwargs)
