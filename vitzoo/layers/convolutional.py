"""Blocks' parts made of convolutions and linear layers on maps (B, H, W, C), which SViT, RMT and CAS-ViT have in common."""
import torch
from torch import nn

from .activations import Gelu
from .fold import fold_batch_norm, fold_identity
from .nhwc import on_nchw, pointwise_conv, residual_conv
from .plain import require_plain


class ConvMlp(nn.Module):
    """Linear, GELU, residual depthwise 3x3, Linear on a (B, H, W, C) map."""

    def __init__(self, dim: int, hidden_dim: int, device=None, dtype=None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.act = Gelu()
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(residual_conv(self.dwconv, self.act(self.fc1(x))).contiguous())

    def fuse(self) -> nn.Module:
        """Add the identity to the depthwise kernel (inference only)."""
        self.dwconv = fold_identity(self.dwconv)
        return self

    def deploy(self, runtime: str) -> nn.Module:
        """With 1x1 convolutions, but where they are to be quantised. Raises ValueError if the linear layers are more than their weight."""
        if runtime == 'onnx-int8':
            return self
        require_plain(nn.Linear, self.fc1, self.fc2)
        return DeployedConvMlp(self)


class DeployedConvMlp(nn.Module):
    """`ConvMlp` with 1x1 convolutions: ONNX Runtime keeps its blocked layout from one convolution to the next."""

    def __init__(self, mlp: ConvMlp):
        super().__init__()
        self.fc1 = pointwise_conv(mlp.fc1)
        self.act = mlp.act
        self.dwconv = mlp.dwconv  # with the identity
        self.fc2 = pointwise_conv(mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        return self.fc2(self.dwconv(self.act(self.fc1(x)))).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and batch norm, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C')."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=3, stride=2, padding=1, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def fuse(self) -> nn.Module:
        """Fold the batch norm into the convolution (inference only)."""
        self.conv, self.norm = fold_batch_norm(self.conv, self.norm)
        return self


class Projection(nn.Module):
    """Linear to the classifier's width, batch norm and SiLU after the last stage; (B, H, W, C) -> (B, H, W, C')."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        self.fc = nn.Linear(in_dim, dim, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(dim, device=device, dtype=dtype)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(on_nchw(self.norm, self.fc(x)))

    def fuse(self) -> nn.Module:
        """Fold the batch norm into the linear layer (inference only)."""
        self.fc, self.norm = fold_batch_norm(self.fc, self.norm)
        return self
