"""Layers folded into the one before them, for inference: what the `fuse()` of the families' modules is made of.

Each function returns what stands in the place of its arguments, and leaves alone what is folded already. Where a layer is more than its
weight (adapters, hooks, parametrisations) it raises ValueError before anything has changed.
"""
import copy

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, LayerScale, LayerScale2d
from timm.models import fastvit, swiftformer
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from .nhwc import WithIdentity, identity_kernel
from .plain import require_bare, require_plain

LAYERS = (nn.Conv2d, Conv2dSame, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, BatchNormAct2d, FrozenBatchNormAct2d)
LAYER_SCALES_2D = (LayerScale2d, fastvit.LayerScale2d, swiftformer.LayerScale2d)  # of maps with channels first
LAYER_SCALES = (LayerScale, *LAYER_SCALES_2D)


def batch_norm_affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift (C,) of a batch norm in inference, or of what training tools put in its place; None for other modules."""
    if type(norm) not in BATCH_NORMS or norm.running_mean is None:
        return None
    require_bare(norm)
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


@torch.no_grad()
def fold_batch_norm(layer: nn.Conv2d | nn.Linear, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A convolution or linear layer and the batch norm behind it -> one that does both, and an identity, or the norm's own activation."""
    affine = batch_norm_affine(norm)
    if affine is None:
        return layer, norm
    require_plain(type(layer) if type(layer) in LAYERS else nn.Linear, layer)
    rest = norm.act if isinstance(norm, BatchNormAct2d | FrozenBatchNormAct2d) else nn.Identity()
    return _scaled(layer, *affine), rest


def _scaled(layer: nn.Conv2d | nn.Linear, scale: torch.Tensor, shift: torch.Tensor | None = None) -> nn.Module:
    """A layer that answers scale * layer(x) + shift, both (channels,); the parameters of the layer itself stay."""
    scaled = copy.copy(layer)
    scaled._parameters = dict(layer._parameters)
    scaled.weight = nn.Parameter(layer.weight * scale.view(-1, *(1,) * (layer.weight.ndim - 1)), requires_grad=False)
    bias = shift if layer.bias is None else layer.bias * scale if shift is None else layer.bias * scale + shift
    scaled.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return scaled


@torch.no_grad()
def fold_norm_before(norm: nn.Module, linear: nn.Linear) -> nn.Module:
    """Fold a batch norm into the linear layer behind it, in place -> an identity for the norm."""
    affine = batch_norm_affine(norm)
    if affine is None:
        return norm
    require_plain(nn.Linear, linear)
    scale, shift = affine
    linear.bias += linear.weight @ shift
    linear.weight *= scale
    return nn.Identity()


@torch.no_grad()
def fold_layer_scale(layer: nn.Linear | nn.Conv2d, scale: nn.Module) -> nn.Module:
    """Scale a layer, in place, by the layer scale behind it -> an identity for the scale."""
    if not isinstance(scale, LAYER_SCALES):
        return scale
    require_bare(scale)
    scale_layer(layer, scale.gamma.flatten())
    return nn.Identity()


@torch.no_grad()
def scale_layer(layer: nn.Linear | nn.Conv2d, gamma: torch.Tensor) -> None:
    """Have a layer answer gamma (channels,) times what it did, in place; a weight that others share stays as it is for them."""
    require_plain(type(layer) if type(layer) in LAYERS else nn.Linear, layer)
    layer._parameters.update(_scaled(layer, gamma)._parameters)


@torch.no_grad()
def fold_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """Keep the sum of kernel and identity, which `residual_conv` then need not make (inference only).

    Raises ValueError if the convolution is more than its weight.
    """
    if type(conv) is WithIdentity:
        return conv
    require_plain(nn.Conv2d, conv)
    folded = WithIdentity(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, groups=conv.groups,
                          bias=conv.bias is not None, device='meta').train(conv.training)
    folded.weight = nn.Parameter(conv.weight + identity_kernel(*conv.kernel_size, like=conv.weight), requires_grad=False)
    folded.bias = conv.bias
    return folded
