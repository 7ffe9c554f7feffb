"""Layers on channels-last maps (B, H, W, C).

Their convolutions see a permuted view, never a copy, and answer in the same memory order. Linear layers rely on that order;
where one follows a convolution, `.contiguous()` states it, and copies only on a backend whose convolutions answer otherwise.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import register_notrace_module


@register_notrace_module
class BatchNormNhwc(nn.BatchNorm2d):
    """Batch normalisation of a (B, H, W, C) map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualDwConv(nn.Conv2d):
    """x + depthwise 3x3 (x) on a (B, H, W, C) map, as one convolution: the identity is added to the kernel's centre tap.

    Adding to the kernel instead of the map spares one pass over the map; `fuse()` spares the addition to the kernel too.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim, device=device, dtype=dtype)
        self.register_buffer('identity', torch.empty(1, 1, 3, 3, device=device, dtype=dtype), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill what no checkpoint holds (timm's hook for models that were built on the meta device)."""
        nn.init.dirac_(self.identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight if self.identity is None else self.weight + self.identity
        return F.conv2d(x.permute(0, 3, 1, 2), weight, self.bias, padding=1, groups=self.groups).permute(0, 2, 3, 1)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Keep the sum as the kernel (inference only)."""
        if self.identity is not None:
            self.weight += self.identity
            self.identity = None
        return self
