"""Layers for NCHW called on channels-last maps (B, H, W, C).

They see a permuted view, never a copy, and answer in the same memory order. Linear layers rely on that order; where one follows a
convolution, `.contiguous()` states it, and copies only on a backend whose convolutions answer otherwise.
"""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from .plain import is_plain, kind_of
from .tables import per_size


def on_nchw(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A convolution or batch norm, or what stands in its place, of a map (B, H, W, C) -> (B, H', W', C')."""
    return x if kind_of(layer) is nn.Identity else layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """The image (B, C, H, W) with its channels last in memory."""
    return image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # torch.func.vmap knows no memory formats


@per_size
def identity_kernel(height: int, width: int) -> np.ndarray:
    """The kernel (1, 1, height, width) of a depthwise convolution that changes nothing; odd sides."""
    kernel = np.zeros((1, 1, height, width), np.float32)
    kernel[..., height // 2, width // 2] = 1
    return kernel


class WithIdentity(nn.Conv2d):
    """A depthwise convolution to whose kernel the identity was added (`fold_identity`)."""


def residual_conv(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """x + conv(x) of a (B, H, W, C) map, for a depthwise convolution that keeps the size.

    One convolution: the identity is added to the kernel instead of the map, which spares a pass over the map.
    """
    if isinstance(conv, WithIdentity):
        return on_nchw(conv, x)
    if not is_plain(conv, nn.Conv2d):
        return x + on_nchw(conv, x)
    weight = conv.weight + identity_kernel(*conv.kernel_size, like=conv.weight)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, conv.bias, padding=conv.padding, groups=conv.groups).permute(0, 2, 3, 1)


def pointwise_conv(linear: nn.Linear) -> nn.Conv2d:
    """A linear layer as a 1x1 convolution, on the same weight, for inference."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, kernel_size=1, device='meta')  # no memory, no random numbers
    conv.weight, conv.bias = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False), linear.bias
    return conv


def no_conv(dim: int) -> nn.Conv2d:
    """A depthwise 1x1 convolution that changes nothing.

    ONNX Runtime keeps maps between convolutions in a layout of its own, in which a convolution adds another map to its answer at no cost.
    This one brings a map there.
    """
    conv = nn.Conv2d(dim, dim, kernel_size=1, groups=dim, bias=False, device='meta')
    conv.weight = nn.Parameter(torch.ones(dim, 1, 1, 1), requires_grad=False)
    return conv
