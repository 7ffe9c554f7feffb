"""Token-aware average pooling, TAP: Robustifying Token Attention for Vision Transformers, https://arxiv.org/abs/2303.11126

In front of self-attention each token is replaced by a mean over its neighbourhood, of a reach that a small predictor chooses token by
token. The attention branch alone sees the pooled map; the residual is the map itself.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from ..arguments import check_range, check_types
from .checks import MOST


def pool_by_scale(x: torch.Tensor, mask: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Map (B, C, H, W) and shares (B, K, H, W) of the scales -> sum over k of mask_k * pool_k(x), (B, C, H, W).

    pool_0(x) is x; pool_k is the mean of the 3x3 neighbours at dilation k, where what lies outside counts as zeros. box: a depthwise
    kernel (C, 1, 3, 3) of ones, which sums them. The nine are divided out of the shares: those are few, and 1/9 has no exact float.
    """
    y, ninths = x * mask[:, :1], mask / 9
    for k in range(1, mask.shape[1]):
        y = y + ninths[:, k:k + 1] * F.conv2d(x, box, padding=k, dilation=k, groups=x.shape[1])
    return y


class TokenAwarePooling(nn.Module):
    """Token-aware average pooling of a map (B, H, W, C), of any height and width, into one of the same shape.

    A predictor gives each position shares of `num_scales` reaches, which sum to 1: of the token itself, and of the means of its 3x3
    neighbours at dilations 1, 2, ... `proj` has the published names behind `dilation_predictor.`.

    Args:
        dim: channels C.
        num_scales: K; 4 in the published models, 1 leaves the map as it is.
        offset: added to the logit of the token itself, and in no checkpoint. The predictor has no last bias, so that it begins with shares
            of about 1/K; 10 lets a pretrained model begin nearly undisturbed. 0 as published.

    Raises:
        ValueError: no channels, no scale, or more of them than 64.
    """

    @check_types
    def __init__(self, dim: int, num_scales: int = 4, offset: float = 0., device: torch.device | None = None,
                 dtype: torch.dtype | None = None):
        check_range(1, MOST, dim=dim)
        check_range(1, 64, num_scales=num_scales)
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_scales = num_scales
        self.proj = nn.Sequential(
            nn.Conv2d(dim, num_scales, kernel_size=3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(num_scales, **dd),
            nn.Conv2d(num_scales, num_scales, kernel_size=3, padding=1, bias=False, **dd))
        self.offset = offset
        self.register_buffer('box', torch.empty(dim, 1, 3, 3, **dd), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill what no checkpoint holds; for models that were built without memory (timm calls it so)."""
        self.box.fill_(1)

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """The shares (B, H, W, K) of the scales at each position of a map (B, H, W, C)."""
        return self._mask(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.proj(x)
        if self.offset:
            logits = torch.cat([logits[:, :1] + self.offset, logits[:, 1:]], dim=1)
        return logits.softmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_nchw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward_nchw(self, x: torch.Tensor) -> torch.Tensor:
        """The same on a map (B, C, H, W)."""
        return pool_by_scale(x, self._mask(x), self.box)

    def extra_repr(self) -> str:
        return f'num_scales={self.num_scales}, offset={self.offset:g}'
