"""Four levels from one: the simple feature pyramid of ViTDet, https://arxiv.org/abs/2203.16527, section 3."""
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """The last map of a columnar model (B, dim, h, w) to one map a stride, finer ones by transposed convolution, coarser ones by pooling.

    Each doubling of the resolution halves the channels: from a grid of stride 16, strides 4, 8, 16, 32 have dim / 4, dim / 2, dim, dim.
    The LayerNorm in front stands in the place of the final norm of the model, which is part of its head. The 1x1 and 3x3 convolutions
    that ViTDet puts on each level are the business of the neck or head that follows.

    Args:
        dim: channels of the map.
        grid_stride: its stride, a power of two.
        strides: those wanted.
    """

    def __init__(self, dim: int, grid_stride: int, strides: Sequence[int]):
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.strides = tuple(strides)
        self.out_channels, self.levels = [], nn.ModuleList()
        for stride in strides:
            if stride > grid_stride:
                layers, channels = [nn.MaxPool2d(stride // grid_stride, ceil_mode=True)], dim
            else:
                layers, channels = _upsampling(dim, grid_stride // stride)
            self.levels.append(nn.Sequential(*layers))
            self.out_channels.append(channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Map (B, dim, h, w) of an image of `size` -> maps (B, C, ceil(H / stride), ceil(W / stride))."""
        x = self.norm(x)
        return [level(x)[:, :, :(size[0] + stride - 1) // stride, :(size[1] + stride - 1) // stride]
                for level, stride in zip(self.levels, self.strides, strict=True)]


def _upsampling(dim: int, factor: int) -> tuple[list[nn.Module], int]:
    """Transposed convolutions, each twice the size and half the channels, with norm and GELU between them; channels at the end."""
    layers = []
    while factor > 1:
        if dim % 2:
            raise ValueError(f'{dim} channels cannot be halved; expected a model whose channels divide by the factor of its finest level')
        if layers:
            layers += [LayerNorm2d(dim), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2))
        dim, factor = dim // 2, factor // 2
    return layers, dim
