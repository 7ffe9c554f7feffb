"""CAS-ViT: Convolutional Additive Self-attention Vision Transformers, Zhang et al., 2024, https://arxiv.org/abs/2408.03703

A four-stage pyramid for phones: attention without a product of queries and keys. Queries and keys pass a gate per position and a gate per
channel, are added, and a depthwise convolution of the sum weighs the values. At inference all is convolutions, sums, products and sigmoids.
The only norm is BatchNorm, so that nothing but these is left after folding. Published as RCViT-XS/S/M/T.

Shapes: B batch, H W map, C channels.
"""
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model

from ..arguments import check_types
from ..layers import (
    Downsample,
    Gelu,
    channels_last,
    check_pair,
    check_ratios,
    check_stages,
    fold_batch_norm,
    fold_norm_before,
    linear_of,
    on_nchw,
    pointwise_conv,
    require_plain,
)
from ..weights.files import StateDict
from ..weights.layout import Conversion, Layout
from ._builder import build_model
from ._hierarchical import Hierarchical, Stage

__all__ = ['CASViT']


def mean_around(x: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
    """The mean of a map (B, C, H, W): of all positions, (B, C, 1, 1); with a smaller window that around each position, (B, C, H, W).

    At the border it is that of the last whole window (https://arxiv.org/abs/2112.04491).
    """
    H, W = x.shape[2:]
    if window is None or (window[0] >= H and window[1] >= W):
        return x.mean((2, 3), keepdim=True)
    h, w = min(window[0], H), min(window[1], W)
    x = F.avg_pool2d(F.avg_pool2d(x, (h, 1), stride=1), (1, w), stride=1)
    top, left = (h - 1) // 2, (w - 1) // 2
    return F.pad(x, (left, w - 1 - left, top, h - 1 - top), mode='replicate')


class Gates(nn.Module):
    """A map (B, H, W, C) times a gate for each position, made of its neighbourhood, then times one for each channel, made of the means."""

    def __init__(self, dim: int, window: tuple[int, int] | None = None, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.window = window
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.act = nn.ReLU()
        self.position = nn.Linear(dim, 1, bias=False, **dd)
        self.channel = nn.Linear(dim, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = self.act(on_nchw(self.norm, on_nchw(self.dwconv, x)))
        x = x * self.position(near).sigmoid()
        mean = mean_around(x.permute(0, 3, 1, 2), self.window).permute(0, 2, 3, 1)
        return x * self.channel(mean).sigmoid()

    def fuse(self) -> nn.Module:
        """Fold the batch norm into the convolution (inference only)."""
        self.dwconv, self.norm = fold_batch_norm(self.dwconv, self.norm)
        return self


class AdditiveAttention(nn.Module):
    """Convolutional additive self-attention of a map (B, H, W, C); qkv rows ordered q, k, v."""

    def __init__(self, dim: int, window: tuple[int, int] | None = None, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.gates_q = Gates(dim, window, **dd)
        self.gates_k = Gates(dim, window, **dd)
        self.context = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.proj = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return on_nchw(self.proj, on_nchw(self.context, self.gates_q(q) + self.gates_k(k)) * v)


class LocalPerception(nn.Module):
    """Linear, batch norm, depthwise 3x3, GELU, linear on a map (B, H, W, C)."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.fc1 = nn.Linear(dim, dim, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.act = Gelu()
        self.fc2 = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = on_nchw(self.norm, self.fc1(x))
        return self.fc2(self.act(on_nchw(self.dwconv, x)).contiguous())

    def fuse(self) -> nn.Module:
        """Fold the batch norm into the linear layer (inference only)."""
        self.fc1, self.norm = fold_batch_norm(self.fc1, self.norm)
        return self


class Block(nn.Module):
    """Local perception, additive attention, MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float, window: tuple[int, int] | None = None, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.local = LocalPerception(dim, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.attn = AdditiveAttention(dim, window, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=Gelu, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.local(x)  # never dropped, as published
        x = x + self.drop_path(self.attn(on_nchw(self.norm1, x)))
        return x + self.drop_path(self.mlp(on_nchw(self.norm2, x)))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold norm1 into qkv and norm2 into fc1 (inference only)."""
        qkv = self.attn.qkv
        require_plain(nn.Linear, qkv, self.mlp.fc1)
        if qkv.bias is None:
            qkv.bias = nn.Parameter(qkv.weight.new_zeros(len(qkv.weight)), requires_grad=False)
        self.norm1 = fold_norm_before(self.norm1, qkv)
        self.norm2 = fold_norm_before(self.norm2, self.mlp.fc1)
        return self

    def deploy(self, runtime: str) -> nn.Module:
        """With channels first and one layer for each of q, k, v, if all is folded; pointwise layers become convolutions unless they are to
        be quantised. Raises ValueError if the linear layers are more than their weight."""
        norms = self.norm1, self.norm2, self.local.norm, self.attn.gates_q.norm, self.attn.gates_k.norm
        if not all(type(norm) is nn.Identity for norm in norms):
            return self
        return DeployedBlock(self, OnNhwc if runtime == 'onnx-int8' else pointwise_conv)


class OnNhwc(nn.Module):
    """A linear layer of a map (B, C, H, W) -> (B, C', H, W): the matrix product that runtimes have in 8 bits."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DeployedGates(nn.Module):
    """`Gates` of a map (B, C, H, W), of convolutions for 8 bits too: their products are too small to be worth finding ranges for."""

    def __init__(self, gates: Gates):
        super().__init__()
        require_plain(nn.Linear, gates.position, gates.channel)
        self.window = gates.window
        self.near = nn.Sequential(gates.dwconv, gates.act, pointwise_conv(gates.position))
        self.channel = pointwise_conv(gates.channel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.near(x).sigmoid()
        return x * self.channel(mean_around(x, self.window)).sigmoid()


class DeployedBlock(nn.Module):
    """`Block` whose map is NCHW from its first layer to its last; (B, H, W, C) in and out.

    pointwise: makes the layers of one position, of maps (B, C, H, W), from the linear ones.
    """

    def __init__(self, block: Block, pointwise: Callable[[nn.Linear], nn.Module]):
        super().__init__()
        local, attn, mlp = block.local, block.attn, block.mlp
        require_plain(nn.Linear, local.fc1, local.fc2, attn.qkv, mlp.fc1, mlp.fc2)
        self.local = nn.Sequential(pointwise(local.fc1), local.dwconv, local.act, pointwise(local.fc2))
        # one product and a split would be two passes over the map
        self.q, self.k, self.v = (
            pointwise(linear_of(weight, bias)) for weight, bias in zip(attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3), strict=True))
        self.gates_q, self.gates_k = DeployedGates(attn.gates_q), DeployedGates(attn.gates_k)
        self.context, self.proj = attn.context, attn.proj
        self.mlp = nn.Sequential(pointwise(mlp.fc1), mlp.act, pointwise(mlp.fc2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        x = x + self.local(x)
        x = x + self.proj(self.context(self.gates_q(self.q(x)) + self.gates_k(self.k(x))) * self.v(x))
        return (x + self.mlp(x)).permute(0, 2, 3, 1)


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2, each followed by batch norm and ReLU; (B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__(
            nn.Conv2d(in_chans, dim // 2, kernel_size=3, stride=2, padding=1, **dd), nn.BatchNorm2d(dim // 2, **dd), nn.ReLU(),
            nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1, **dd), nn.BatchNorm2d(dim, **dd), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # from here on every map lies channels last in memory
        return super().forward(channels_last(x)).permute(0, 2, 3, 1)

    def fuse(self) -> nn.Module:
        """Fold the batch norms into the convolutions (inference only)."""
        for i in (0, 3):
            self[i], self[i + 1] = fold_batch_norm(self[i], self[i + 1])
        return self


class NormClassifierHead(ClassifierHead):
    """Batch norm, pooling, dropout, linear layer on NCHW features; without pooling and classes nothing at all.

    distilled: a second linear layer, `fc_dist`, as in timm's distilled models: the logits are the mean of both, or, in training with
    `distilled_training`, the pair.
    """

    def __init__(self, in_features: int, num_classes: int, pool_type: str, drop_rate: float, distilled: bool = False, device=None,
                 dtype=None):
        super().__init__(in_features, num_classes, pool_type=pool_type, drop_rate=drop_rate, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(in_features, device=device, dtype=dtype) if num_classes or pool_type else nn.Identity()
        self.fc_dist = None
        if distilled:
            self.fc_dist = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        self.distilled_training = False
        for fc in (self.fc, self.fc_dist):
            if isinstance(fc, nn.Linear):
                trunc_normal_(fc.weight, std=.02)
                nn.init.zeros_(fc.bias)

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.drop(self.global_pool(self.norm(x)))
        if pre_logits or self.fc_dist is None:
            return x if pre_logits else self.fc(x)
        logits = self.fc(x), self.fc_dist(x)
        return logits if self.distilled_training and self.training else (logits[0] + logits[1]) / 2

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Both classifiers as one; fold the norm into it where pooling is a mean (inference only)."""
        if isinstance(self.fc_dist, nn.Linear):
            require_plain(nn.Linear, self.fc, self.fc_dist)
            self.fc = linear_of((self.fc.weight + self.fc_dist.weight) / 2, (self.fc.bias + self.fc_dist.bias) / 2)
        self.fc_dist = None
        if isinstance(self.fc, nn.Linear) and self.global_pool.pool_type in ('avg', 'fast', 'fastavg'):
            self.norm = fold_norm_before(self.norm, self.fc)
        return self


_NAME = 'a CAS-ViT checkpoint: use cas_vit_xs, cas_vit_s, cas_vit_m or cas_vit_t'
_RULES = (
    (r'^patch_embed\.', 'stem.'),
    (r'^network\.(\d)\.proj\.', r'network.\1.conv.'),
    *((rf'^network\.{2 * i}\.', f'stages.{i}.blocks.') for i in range(4)),
    *((rf'^network\.{2 * i - 1}\.', f'stages.{i}.downsample.') for i in range(1, 4)),
    (r'\.local_perception\.network\.0\.', '.local.fc1.'),
    (r'\.local_perception\.network\.1\.', '.local.norm.'),
    (r'\.local_perception\.network\.2\.', '.local.dwconv.'),
    (r'\.local_perception\.network\.4\.', '.local.fc2.'),
    (r'\.oper_([qk])\.0\.block\.0\.', r'.gates_\1.dwconv.'),
    (r'\.oper_([qk])\.0\.block\.1\.', r'.gates_\1.norm.'),
    (r'\.oper_([qk])\.0\.block\.3\.', r'.gates_\1.position.'),
    (r'\.oper_([qk])\.1\.block\.1\.', r'.gates_\1.channel.'),
    (r'\.attn\.dwc\.', '.attn.context.'),
)


class Classifier(Layout):
    """Of a file with two classifiers a model with one gets the mean, which gives the same logits."""

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        conversion = super().convert(state, model)
        for part in ('weight', 'bias'):
            first, second = f'head.fc.{part}', f'head.fc_dist.{part}'
            pair = [conversion.state.get(name) for name in (first, second)]
            if model.head.fc_dist is None and all(x is not None for x in pair) and pair[0].shape == pair[1].shape:
                conversion.state[first] = (pair[0] + conversion.state.pop(second)) / 2
                for name, new in conversion.renamed.items():
                    conversion.renamed[name] = first if new == second else new
        return conversion


# dense backbones: no classifier, but norm0, norm2, norm4, norm6, which belong to DenseBackbone
DENSE = Layout(
    name=_NAME,
    marker=r'\.local_perception\.network\.',
    absent=r'^head\.',
    rules=(*_RULES, *((rf'^norm{2 * i}\.', f'norm{i}.') for i in range(1, 4))),
    new=r'^head\.norm\.',
)
CLASSIFIER = Classifier(
    name=_NAME,
    marker=DENSE.marker,
    own_marker=r'\.attn\.gates_q\.',
    rules=(*_RULES, (r'^norm\.', 'head.norm.'), (r'^head\.(weight|bias)$', r'head.fc.\1'), (r'^dist_head\.', 'head.fc_dist.')),
)
# a distilled model in our names
DISTILLED = Classifier(name=_NAME, marker=r'^head\.fc_dist\.', ours=True, suits=lambda model: model.head.fc_dist is None)


class CASViT(Hierarchical):
    """Convolutional additive self-attention vision transformer (https://arxiv.org/abs/2408.03703).

    Takes images of any height and width from 1x1 on; maps are ceil(H / 4) .. ceil(H / 32).

    Args:
        embed_dims, depths: per stage.
        local_pool: the size (height, width), in pixels, of images that the model was trained on, or one number: at inference on larger
            ones the channel gates see means over windows of that size instead of the whole map. None: the whole map, as published.
        distilled: a second classifier, for training by distillation; the logits are the mean of both.
        drop_path_rate: of the last block; rates grow block by block.

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (DENSE, CLASSIFIER, DISTILLED)
    attends = False  # gates instead
    dense_norm = nn.BatchNorm2d  # norm0, norm2, norm4 and norm6 of the published dense backbones

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, ...] = (48, 64, 128, 256),
            depths: tuple[int, ...] = (3, 3, 6, 3),
            mlp_ratio: float = 4.,
            local_pool: int | tuple[int, int] | None = None,
            distilled: bool = False,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, least=2)  # the stem goes by way of half as many
        check_ratios(embed_dims, mlp_ratio=mlp_ratio)
        train_size = None if local_pool is None else check_pair('local_pool', local_pool)
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims)
        dd = {'device': device, 'dtype': dtype}
        self.distilled = distilled

        self.stem = Stem(in_chans, embed_dims[0], **dd)
        drop_path = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            window = None if train_size is None else tuple(-(-n // (4 * 2 ** i)) for n in train_size)
            blocks = [Block(dim, mlp_ratio, rate, window, **dd) for rate in drop_path[i]]
            stages.append(Stage(Downsample(embed_dims[i - 1], dim, **dd) if i else nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()  # the final norm is the head's, which folds it into the classifier
        self.build_head(**dd)

    def make_head(self, **factory_kwargs) -> nn.Module:
        head = NormClassifierHead(
            self.num_features, self.num_classes, self.global_pool, self.drop_rate, self.distilled, **factory_kwargs)
        trained = getattr(self, 'head', None)
        if trained is not None:
            head.distilled_training = trained.distilled_training
            if type(trained.norm) is type(head.norm) and trained.in_features == head.in_features:
                head.norm = trained.norm  # a new classifier on the same features
        return head

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return (self.head.fc, self.head.fc_dist) if self.distilled else self.head.fc

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Give the pair of logits in training, as timm's distilled models do."""
        self.head.distilled_training = enable


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.0', 'classifier': 'head.fc', **kwargs,
    }


def _share(file_id: str, filename: str, **kwargs) -> dict:
    """Published on a share that no program can download from; `filename` is where our configs look for it."""
    return _cfg(
        origin_url=f'https://drive.google.com/file/d/{file_id}', notes=(f'file: {filename}',),
        paper_ids='arXiv:2408.03703', license='mit', **kwargs)


_384 = dict(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, crop_mode='squash')
default_cfgs = generate_default_cfgs({
    'cas_vit_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'cas_vit_xs.in1k': _share('16wKcwF6QMW5w_lyPYnDKjMNuoxQDfrLK', 'cas_vit_xs_in1k.pth'),
    'cas_vit_xs.in1k_384': _share('1kwRPtJ4FdmNeTm2MsiFN7N2DJpou3Pgl', 'cas_vit_xs_in1k_384.pth', **_384),
    'cas_vit_s.in1k': _share('1facFRq8s8oelYUtK1fj3fcfdoWoKDBQQ', 'cas_vit_s_in1k.pth'),
    'cas_vit_s.in1k_384': _share('1UagCihMWmNCmYGC1DV5euAvA5TONI818', 'cas_vit_s_in1k_384.pth', **_384),
    'cas_vit_m.in1k': _share('13sQpSEf0h_uuh0jRy9V0yIW6ZsbDpVGy', 'cas_vit_m_in1k.pth'),
    'cas_vit_m.in1k_384': _share('1pTwKKRLPA7vBfk_KTgJ4J1Jq3ttkh3O2', 'cas_vit_m_in1k_384.pth', **_384),
    'cas_vit_t.in1k': _share('1NqoIUPbwBC91RTjTUvubAbOfGqo1VYT0', 'cas_vit_t_in1k.pth'),
    'cas_vit_t.in1k_384': _share('1N5Y81Vcyf2ox41TC3wlRBxgQPYaEndTW', 'cas_vit_t_in1k_384.pth', **_384),
})

VARIANTS = {
    'cas_vit_micro': dict(embed_dims=(32, 64, 128, 192), depths=(1, 1, 2, 1)),
    'cas_vit_xs': dict(embed_dims=(48, 56, 112, 220), depths=(2, 2, 4, 2)),
    'cas_vit_s': dict(embed_dims=(48, 64, 128, 256), depths=(3, 3, 6, 3)),
    'cas_vit_m': dict(embed_dims=(64, 96, 192, 384), depths=(3, 3, 6, 3)),
    'cas_vit_t': dict(embed_dims=(96, 128, 256, 512), depths=(3, 3, 6, 3)),
}


def _create_cas_vit(variant: str, pretrained: bool, **kwargs) -> CASViT:
    if kwargs.get('distilled') is True:
        kwargs['pretrained_cfg_overlay'] = {**(kwargs.get('pretrained_cfg_overlay') or {}), 'classifier': ('head.fc', 'head.fc_dist')}
    return build_model(CASViT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def cas_vit_micro(pretrained: bool = False, **kwargs) -> CASViT:
    """Our own, for tests and tutorials."""
    return _create_cas_vit('cas_vit_micro', pretrained, **kwargs)


@register_model
def cas_vit_xs(pretrained: bool = False, **kwargs) -> CASViT:
    """CAS-ViT-XS: 3.0 M parameters, 0.55 GFLOPs, 78.3 % ImageNet top-1 (README)."""
    return _create_cas_vit('cas_vit_xs', pretrained, **kwargs)


@register_model
def cas_vit_s(pretrained: bool = False, **kwargs) -> CASViT:
    """CAS-ViT-S: 5.5 M parameters, 0.92 GFLOPs, 80.9 % ImageNet top-1 (README)."""
    return _create_cas_vit('cas_vit_s', pretrained, **kwargs)


@register_model
def cas_vit_m(pretrained: bool = False, **kwargs) -> CASViT:
    """CAS-ViT-M: 12.0 M parameters, 1.87 GFLOPs, 82.8 % ImageNet top-1 (README)."""
    return _create_cas_vit('cas_vit_m', pretrained, **kwargs)


@register_model
def cas_vit_t(pretrained: bool = False, **kwargs) -> CASViT:
    """CAS-ViT-T, the largest: 21.3 M parameters, 3.58 GFLOPs, 83.9 % ImageNet top-1 (README)."""
    return _create_cas_vit('cas_vit_t', pretrained, **kwargs)
