"""Layers folded into the one before them, for inference: what the `fuse()` of the families' modules is made of.

Each function returns what stands in the place of its arguments, and leaves alone what is folded already.
"""
import torch
from timm.layers import LayerScale
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def fold_batch_norm(layer: nn.Conv2d | nn.Linear, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A convolution or linear layer and the batch norm behind it -> one that does both, and an identity."""
    if not isinstance(norm, nn.BatchNorm2d):
        return layer, norm
    fuse = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
    return fuse(layer, norm), nn.Identity()


@torch.no_grad()
def fold_layer_scale(linear: nn.Linear, scale: nn.Module) -> nn.Module:
    """Scale a linear layer, in place, by the layer scale behind it -> an identity for the scale."""
    if not isinstance(scale, LayerScale):
        return scale
    linear.weight *= scale.gamma[:, None]
    linear.bias *= scale.gamma
    return nn.Identity()
