"""RMT: Retentive Networks Meet Vision Transformers, Fan et al., CVPR 2024, https://arxiv.org/abs/2309.11523

A four-stage pyramid whose attention fades with distance: each head adds to its logits a constant of its own, negative, times the
Manhattan distance of two positions, and rotates queries and keys by their position. Early stages attend along the rows of the map, then
along its columns, where the two distances add up to the same; late ones attend among all positions. Published code:
https://github.com/qhfan/RMT, which calls base and large RMT_M2 and RMT_L6.

Shapes: B batch, H W map, N = H * W positions, C channels in n heads of d, L positions of a row or column.
"""
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, LayerScale, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_module

from ..arguments import check_range, check_types, show
from ..layers import (
    MOST,
    ConvMlp,
    Downsample,
    Gelu,
    Projection,
    SoftmaxAttention,
    cells,
    channels_last,
    check_ratios,
    check_stages,
    fold_batch_norm,
    fold_identity,
    fold_layer_scale,
    on_nchw,
    per_size,
    pointwise_conv,
    record,
    recording,
    require_plain,
    residual_conv,
)
from ..weights.files import StateDict
from ..weights.layout import Conversion, Layout
from ._builder import build_model
from ._hierarchical import Hierarchical, Stage

__all__ = ['RMT']

MOST_DECAY = 2 ** 24  # numbers that are made at a time of the decay of full attention
MOST_CACHED = 2 ** 19  # numbers of the attention maps of an image's lines, beyond which images are taken one by one
LEAST_FUSED = 56  # positions of a line from which the fused kernel is the faster one on a CPU
LEAST_SOFTMAX = 16  # numbers that PyTorch's softmax takes at once on a CPU


@per_size
def rotary_tables(height: int, width: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine, sine and its negative of the angles by which heads of this width are rotated, (H * W, d / 2) each, times the scale d^-1/4
    that queries and keys have each.

    The angle of a pair is its frequency, from 1 down to 1e-4 with both ends, times the row-major index of the position. It is rounded to
    float32 as in the published code; half precision, whose integers would not reach the last position, gets the finished tables.
    """
    frequencies = 10000 ** -np.linspace(0, 1, dim // 2, dtype=np.float32)
    angles = np.arange(height * width, dtype=np.float32)[:, None] * frequencies
    scale = np.float32(dim ** -0.25)
    cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
    return cos, sin, -sin


@per_size
def decay_table(length: int, num_heads: int, init_value: float, heads_range: float, columns: int = 0) -> np.ndarray:
    """What distance adds to the logits of a row or column, (n, L, L): |i - j| log(1 - 2^-(a + b h / n)) of head h.

    columns: if more than L, keys that are not there, with -inf, up to this number.
    """
    rates = np.log(1 - 2. ** -(init_value + heads_range * np.arange(num_heads) / num_heads))
    distances = np.abs(np.arange(length)[:, None] - np.arange(length))
    table = (rates[:, None, None] * distances).astype(np.float32)
    return np.pad(table, ((0, 0), (0, 0), (0, max(0, columns - length))), constant_values=-np.inf)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, minus_sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (m, m + d / 2) of channels of each head, (..., d) in and out, which lies in memory as its axes stand."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([(a * cos).addcmul_(b, minus_sin), (b * cos).addcmul_(a, sin)], dim=-1)


@register_notrace_module
class Retention(nn.Module):
    """Attention of a (B, H, W, C) map that fades with distance; base of the two kinds.

    The rows of qk are ordered q, k, then head, then head channel; the pairs that are rotated are the two halves of a head.
    """

    def __init__(self, dim: int, num_heads: int, init_value: float, heads_range: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.decay = num_heads, init_value, heads_range
        self.qk = nn.Linear(dim, 2 * dim, **dd)
        self.v = nn.Linear(dim, dim, **dd)
        self.lepe = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim, **dd)
        self.sdp_attn = SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, **dd)

    def attend(self, qk: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Queries and keys (B, H, W, 2, n, d), before they are rotated, and values (B, H, W, n, d) -> (B, H, W, n, d)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.num_heads, x.shape[3] // self.num_heads
        qk, v = self.qk(x), self.v(x)
        y = self.attend(qk.unflatten(3, (2, *heads)), v.unflatten(3, heads))
        # the sum takes the memory layout of its first operand: channels last
        return self.proj((on_nchw(self.lepe, v).unflatten(3, heads) + y).flatten(3).contiguous())


class AxialRetention(Retention):
    """Attention along each row, whose answer is attended to along each column, with the same queries and keys."""

    def attend(self, qk: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        H, W, d = v.shape[1], v.shape[2], v.shape[4]
        if recording():
            record(self, 'rows', cells(H, W, 1, W), H)
            record(self, 'columns', cells(H, W, H, 1), W)
        tables = (table.view(H, 1, W, d // 2) for table in rotary_tables(H, W, d, like=qk))
        q, k = rotate(qk.permute(3, 0, 1, 4, 2, 5), *tables).unbind(0)
        x = self.attend_lines(q, k, v.transpose(2, 3))  # (B, H, n, W, d)
        x = self.attend_lines(*(y.permute(0, 3, 2, 1, 4) for y in (q, k, x)))  # (B, W, n, H, d)
        return x.permute(0, 3, 1, 2, 4)

    def attend_lines(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention along rows or columns, (B, lines, n, L, d) each, and out."""
        L = q.shape[3]
        on_cpu, traced = q.device.type == 'cpu', torch.compiler.is_compiling() or torch.jit.is_tracing()
        eager = on_cpu and not traced
        if eager and len(q) > 1 and not torch.is_grad_enabled() and q.numel() // q.shape[4] * L > MOST_CACHED:
            x = q.new_empty(q.shape)  # image by image, whose maps of attention find the same memory again
            for i in range(len(q)):
                x[i:i + 1] = self.attend_lines(q[i:i + 1], k[i:i + 1], v[i:i + 1])
            return x
        lines = q.shape[1]
        # compilers and hooks know attention of four axes; GPUs read them in the order of memory
        q, k, v = ((x if on_cpu else x.contiguous()).flatten(0, 1) for x in (q, k, v))
        if self.sdp_attn.fused_attn and (not on_cpu or eager and L >= LEAST_FUSED):
            decay = decay_table(L, *self.decay, like=q)[None]  # on CPUs no fused kernel takes masks of three axes
            return self.sdp_attn(q, k, v, decay, scale=1).unflatten(0, (-1, lines))
        # A softmax of fewer numbers than a register of a CPU holds takes them one by one: the keys are filled up.
        columns = L if traced else max(L, LEAST_SOFTMAX)
        if columns > L:
            k = F.pad(k, (0, 0, 0, columns - L))
        logits = q @ k.transpose(2, 3)
        weights = logits.add_(decay_table(L, *self.decay, columns, like=q)).softmax(-1)[..., :L]
        return (self.sdp_attn.attn_drop(weights) @ v).unflatten(0, (-1, lines))


class FullRetention(Retention):
    """Attention among all positions, with the decay of as many queries at a time as keep it small."""

    def attend(self, qk: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        _, H, W, n, d = v.shape
        N = H * W
        q, k = rotate(qk.flatten(1, 2).permute(2, 0, 3, 1, 4), *rotary_tables(H, W, d, like=qk)).unbind(0)  # (B, n, N, d) each
        v = v.flatten(1, 2).transpose(1, 2)
        decay_h, decay_w = (decay_table(length, *self.decay, like=q) for length in (H, W))
        rows = max(1, MOST_DECAY // (n * W * N))
        parts = []
        for i in range(0, H, rows):
            # (n, rows, W, H, W), of plain numbers where torch.compile has made those of the tables symbolic
            decay = decay_h[:, i:i + rows].reshape(n, -1, 1, H, 1) + decay_w.reshape(n, 1, W, 1, W)
            decay = decay.flatten(3).flatten(1, 2)[None]  # on CPUs no fused kernel takes masks of three axes
            parts.append(self.sdp_attn(q[:, :, i * W:(i + rows) * W], k, v, decay, scale=1))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return x.transpose(1, 2).unflatten(1, (H, W))


class Block(nn.Module):
    """Convolutional position embedding, retention, convolutional MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, attn: Retention, mlp_ratio: float, init_values: float | None, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.pos_embed = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = residual_conv(self.pos_embed, x)
        x = self.drop_path(self.ls1(self.attn(self.norm1(x)))) + x
        return self.drop_path(self.ls2(self.mlp(self.norm2(x)))) + x

    def fuse(self) -> nn.Module:
        """Fold layer scales into the projections before them, the identity into a kernel (inference only)."""
        self.pos_embed = fold_identity(self.pos_embed)
        self.ls1 = fold_layer_scale(self.attn.proj, self.ls1)
        self.ls2 = fold_layer_scale(self.mlp.fc2, self.ls2)
        return self

    def deploy(self, runtime: str) -> nn.Module:
        """As a chain of convolutions, if all is folded and nothing is to be quantised."""
        folded = runtime != 'onnx-int8' and all(type(layer) is nn.Identity for layer in (self.ls1, self.ls2))
        if not folded:
            return self
        require_plain(nn.Linear, self.attn.proj)
        return DeployedBlock(self)


class DeployedBlock(nn.Module):
    """`Block` whose map between the layers is NCHW, where the runtime adds what is kept within convolutions; (B, H, W, C) in and out."""

    def __init__(self, block: Block):
        super().__init__()
        self.pos_embed = block.pos_embed  # with the identity
        self.norm1 = block.norm1
        self.attn = block.attn
        self.proj, self.attn.proj = pointwise_conv(self.attn.proj), nn.Identity()
        self.norm2 = block.norm2
        self.mlp = block.mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pos_embed(x.permute(0, 3, 1, 2))
        y = self.attn(self.norm1(x.permute(0, 2, 3, 1)))
        x = x + self.proj(y.permute(0, 3, 1, 2))
        y = self.norm2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.mlp.fc2(self.mlp.dwconv(self.mlp.act(self.mlp.fc1(y))))
        return x.permute(0, 2, 3, 1)


class Stem(nn.Sequential):
    """Four 3x3 convolutions with batch norm, and GELU between them; (B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        layers = []
        for in_dim, out_dim, stride in ((in_chans, dim // 2, 2), (dim // 2, dim // 2, 1), (dim // 2, dim, 2), (dim, dim, 1)):
            layers += [nn.Conv2d(in_dim, out_dim, kernel_size=3, stride=stride, padding=1, device=device, dtype=dtype),
                       nn.BatchNorm2d(out_dim, device=device, dtype=dtype), Gelu()]
        super().__init__(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # from here on every map lies channels last in memory
        return super().forward(channels_last(x)).permute(0, 2, 3, 1)

    def fuse(self) -> nn.Module:
        """Fold the batch norms into the convolutions (inference only)."""
        for i in range(0, len(self), 3):
            self[i], self[i + 1] = fold_batch_norm(self[i], self[i + 1])
        return self


def _to_halves(qk: torch.Tensor, model: nn.Module, name: str) -> torch.Tensor:
    """Published heads are rotated in pairs of neighbours; ours have the first of all pairs in front, then the second."""
    heads = 2 * model.get_submodule(name.rsplit('.qk.', 1)[0]).num_heads
    return qk.reshape(heads, -1, 2, *qk.shape[1:]).transpose(1, 2).reshape(qk.shape)


@dataclass(frozen=True)
class RMTLayout(Layout):
    """A layout whose q_proj and k_proj are one layer here."""

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        joined, parts = {}, {}
        for name, value in state.items():
            new = re.sub(r'\.retention\.[qk]_proj\.', '.retention.qk.', name)
            if new == name:
                joined[name] = value
            else:
                parts.setdefault(new, {})[name] = value
        for name, pair in parts.items():
            joined[name] = torch.cat([pair[old] for old in sorted(pair, reverse=True)])  # q, k
        result = super().convert(joined, model)
        for name, pair in parts.items():
            new = result.renamed.pop(name)
            result.renamed.update(dict.fromkeys(pair, new))
        self._check_aux_head(result, state, model)
        return result

    def _check_aux_head(self, result: Conversion, state: StateDict, model: nn.Module) -> None:
        """Switch the auxiliary head off where the file's is for another input.

        The log of RMT-S* counts the parameters of one for the projection, which the published code does not have: nobody says where it
        belongs. The logits are then those of the classifier alone, and the head is listed as dropped.
        """
        weight = result.state.get('aux_head.weight')
        head = getattr(model, 'aux_head', None)
        if weight is None or not isinstance(head, nn.Linear) or weight.ndim != 2 or weight.shape[1] == head.in_features:
            return
        result.state['aux_head.weight'] = weight.new_zeros(len(weight), head.in_features)
        result.state['aux_head.bias'] = weight.new_zeros(len(weight))
        result.dropped += [name for name in state if name.startswith('aux_head.')]


_RULES = (
    (r'\.Relpos\.(angle|decay)$', None),  # made of the options
    (r'^patch_embed\.proj\.', 'stem.'),
    (r'^layers\.0\.downsample\.', 'stages.1.downsample.'),
    (r'^layers\.1\.downsample\.', 'stages.2.downsample.'),
    (r'^layers\.2\.downsample\.', 'stages.3.downsample.'),
    (r'\.downsample\.reduction\.', '.downsample.conv.'),
    (r'^layers\.', 'stages.'),
    (r'\.pos\.conv\.', '.pos_embed.'),
    (r'\.retention_layer_norm\.', '.norm1.'),
    (r'\.retention\.lepe\.conv\.', '.attn.lepe.'),
    (r'\.retention\.out_proj\.', '.attn.proj.'),
    (r'\.retention\.v_proj\.', '.attn.v.'),
    (r'\.retention\.', '.attn.'),
    (r'\.gamma_(\d)$', r'.ls\1.gamma'),
    (r'\.final_layer_norm\.', '.norm2.'),
    (r'\.ffn\.dwconv\.conv\.', '.mlp.dwconv.'),
    (r'\.ffn\.', '.mlp.'),
    (r'^proj\.', 'proj.fc.'),
    (r'^norm\.', 'proj.norm.'),
    (r'^head\.', 'head.fc.'),
    (r'^extra_norms\.(\d)\.', r'norm\1.'),
)
_FACTS = dict(marker=r'\.retention\.q_proj\.', values=((r'\.attn\.qk\.(weight|bias)$', _to_halves),))
TOKEN_LABEL = RMTLayout(
    name='an RMT checkpoint of token labelling: use rmt_small_tl, rmt_base_tl or rmt_large_tl',
    suits=lambda model: model.token_label,
    rules=_RULES,
    **_FACTS,
)
PUBLISHED = RMTLayout(
    name='an RMT checkpoint: use rmt_tiny, rmt_small, rmt_base or rmt_large',
    own_marker=r'^stages\.\d\.blocks\.\d+\.attn\.qk\.',
    suits=lambda model: not model.token_label,
    rules=(*_RULES, (r'^aux_head\.', None)),
    **_FACTS,
)


class RMT(Hierarchical):
    """Retentive vision transformer (https://arxiv.org/abs/2309.11523).

    Takes images of any height and width from 1x1 on; maps are ceil(H / 4) .. ceil(H / 32).

    Args:
        embed_dims, depths, num_heads, mlp_ratios: per stage.
        init_values, heads_ranges: a and b of the decay per stage (published names): the logits of head h of n get
            log(1 - 2^-(a + b h / n)) for each step of distance.
        chunkwise_recurrents: whether a stage attends along rows, then columns (published name), or among all positions.
        layerscales: whether the blocks of a stage have layer scales.
        layer_init_values: initial value of the layer scales.
        projection: width of the classifier's input.
        token_label: add half of what the classes' best position gets from an auxiliary head (published models that were trained with
            labels of positions).

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (PUBLISHED, TOKEN_LABEL)
    final = 'proj'
    dense_norm_eps = 1e-5
    exportable_dynamic_size = 'its rotary and decay tables are made for one size'  # read by vitzoo.export

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, ...] = (64, 128, 256, 512),
            depths: tuple[int, ...] = (3, 4, 18, 4),
            num_heads: tuple[int, ...] = (4, 4, 8, 16),
            mlp_ratios: tuple[float, ...] = (4., 4., 3., 3.),
            init_values: tuple[float, ...] = (2., 2., 2., 2.),
            heads_ranges: tuple[float, ...] = (4., 4., 6., 6.),
            chunkwise_recurrents: tuple[bool, ...] = (True, True, True, False),
            layerscales: tuple[bool, ...] = (False, False, False, False),
            layer_init_values: float = 1e-6,
            projection: int = 1024,
            token_label: bool = False,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, num_heads, even=True, mlp_ratios=mlp_ratios, init_values=init_values, heads_ranges=heads_ranges,
                     chunkwise_recurrents=chunkwise_recurrents, layerscales=layerscales)
        for ratio in mlp_ratios:
            check_ratios(embed_dims, mlp_ratios=ratio)
        check_range(1, MOST, projection=projection)
        check_range(0.01, 100, init_values=init_values)
        check_range(0, 100, heads_ranges=heads_ranges)
        for dim, heads in zip(embed_dims, num_heads, strict=True):
            if dim // heads % 2:
                raise ValueError(f'embed_dims={show(embed_dims)}, num_heads={show(num_heads)}: heads are rotated in pairs of channels; '
                                 f'expected an even number a head, got {dim // heads}.')
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims,
                         num_features=embed_dims[-1] if token_label else projection)
        dd = {'device': device, 'dtype': dtype}

        self.stem = Stem(in_chans, embed_dims[0], **dd)
        drop_path = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            kind = AxialRetention if chunkwise_recurrents[i] else FullRetention
            blocks = [Block(dim, kind(dim, num_heads[i], init_values[i], heads_ranges[i], **dd), mlp_ratios[i],
                            layer_init_values if layerscales[i] else None, rate, **dd) for rate in drop_path[i]]
            stages.append(Stage(Downsample(embed_dims[i - 1], dim, **dd) if i else nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.token_label = token_label
        self.proj = Projection(embed_dims[-1], projection, **dd)
        self.build_head(**dd)
        self.apply(_init_weights)

    def build_head(self, device=None, dtype=None) -> None:
        super().build_head(device=device, dtype=dtype)
        self.head_hidden_size = self.head.num_features
        self.aux_head = nn.Identity()
        if self.token_label and self.num_classes:
            self.aux_head = nn.Linear(self.num_features, self.num_classes, device=device, dtype=dtype)
        self.aux_head.train(self.training)

    def make_head(self, **factory_kwargs) -> nn.Module:
        projected = self.token_label and isinstance(self.proj, Projection)  # not pruned
        width = self.proj.fc.out_features if projected else self.num_features
        return ClassifierHead(width, self.num_classes, pool_type=self.global_pool, drop_rate=self.drop_rate, **factory_kwargs)

    # The auxiliary head looks at what the last stage says: with it, that are the features, and the projection is the head's.

    def forward_final(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.token_label else super().forward_final(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if not self.token_label:
            return super().forward_head(x, pre_logits)
        x = x.permute(0, 2, 3, 1)
        logits = self.head(self.proj(x).permute(0, 3, 1, 2), pre_logits=pre_logits)
        if pre_logits or not self.num_classes:
            return logits
        return logits + 0.5 * self.aux_head(x).amax((1, 2))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.0', 'classifier': 'head.fc', **kwargs,
    }


def _share(url: str, filename: str, **kwargs) -> dict:
    """Published on a share that no program can download from, and that shows its names to nobody without an account: these are ours."""
    return _cfg(
        origin_url=f'https://pan.baidu.com/s/{url}', notes=(f'file: {filename}',), paper_ids='arXiv:2309.11523', license='none stated',
        **kwargs)


_TWO_HEADS = dict(classifier=('head.fc', 'aux_head'))
default_cfgs = generate_default_cfgs({
    'rmt_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'rmt_tiny.in1k': _share('1uTSCuPqYRNmT4Zb4Je9BOw?pwd=vsyv', 'rmt_tiny.pth'),
    'rmt_small.in1k': _share('1aQeErkmy191-zshlW2bT0g?pwd=3ay4', 'rmt_small.pth'),
    'rmt_base.in1k': _share('1ZDNl_broia_fvvlEoTaFhA?pwd=yzge', 'rmt_base.pth'),
    'rmt_large.in1k': _share('1v7QWgAh0TulWOTg4d94KHw?pwd=uewu', 'rmt_large.pth'),
    'rmt_small_tl.in1k': _share('1Xjgko9_-rokfvP39uiwTqQ?pwd=q37r', 'rmt_small_tl.pth', **_TWO_HEADS),
    'rmt_base_tl.in1k': _share('1fqCzZ8Pfw39QA4LQ3dSiCg?pwd=2rdt', 'rmt_base_tl.pth', **_TWO_HEADS),
    'rmt_large_tl.in1k': _share('1KvV8IMJC6xG5Eh6w6uFbpw?pwd=z1k2', 'rmt_large_tl.pth', **_TWO_HEADS),
})

_LATE = dict(layerscales=(False, False, True, True))
_SMALL = dict(embed_dims=(64, 128, 256, 512), depths=(3, 4, 18, 4), num_heads=(4, 4, 8, 16))
_BASE = dict(embed_dims=(80, 160, 320, 512), depths=(4, 8, 25, 8), num_heads=(5, 5, 10, 16), heads_ranges=(5., 5., 6., 6.), **_LATE)
_LARGE = dict(embed_dims=(112, 224, 448, 640), depths=(4, 8, 25, 8), num_heads=(7, 7, 14, 20), heads_ranges=(6., 6., 6., 6.), **_LATE)
VARIANTS = {
    'rmt_micro': dict(embed_dims=(32, 64, 128, 192), depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 6), mlp_ratios=(3., 3., 3., 3.),
                      projection=256),
    'rmt_tiny': dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 8, 2), num_heads=(4, 4, 8, 16), mlp_ratios=(3., 3., 3., 3.),
                     chunkwise_recurrents=(True, True, False, False)),
    'rmt_small': _SMALL,
    'rmt_base': _BASE,
    'rmt_large': _LARGE,
    'rmt_small_tl': dict(**_SMALL, token_label=True),
    'rmt_base_tl': dict(**_BASE, token_label=True),
    'rmt_large_tl': dict(**_LARGE, token_label=True),
}


def _create_rmt(variant: str, pretrained: bool, **kwargs) -> RMT:
    return build_model(RMT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def rmt_micro(pretrained: bool = False, **kwargs) -> RMT:
    """Our own, for tests and tutorials."""
    return _create_rmt('rmt_micro', pretrained, **kwargs)


@register_model
def rmt_tiny(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-T: 14.3 M parameters, 2.5 GFLOPs, 82.4 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_tiny', pretrained, **kwargs)


@register_model
def rmt_small(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-S: 27.0 M parameters, 4.5 GFLOPs, 84.1 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_small', pretrained, **kwargs)


@register_model
def rmt_base(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-B: 54.2 M parameters, 9.7 GFLOPs, 85.0 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_base', pretrained, **kwargs)


@register_model
def rmt_large(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-L: 95.5 M parameters, 18.2 GFLOPs, 85.5 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_large', pretrained, **kwargs)


@register_model
def rmt_small_tl(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-S*, trained with token labels: 27.5 M parameters, 84.8 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_small_tl', pretrained, **kwargs)


@register_model
def rmt_base_tl(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-B*, trained with token labels: 54.7 M parameters, 85.6 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_base_tl', pretrained, **kwargs)


@register_model
def rmt_large_tl(pretrained: bool = False, **kwargs) -> RMT:
    """RMT-L*, trained with token labels: 96.1 M parameters, 86.1 % ImageNet top-1 (paper)."""
    return _create_rmt('rmt_large_tl', pretrained, **kwargs)
