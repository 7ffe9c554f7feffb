"""Resampling of maps and position tables as products with constant matrices, which every runtime computes alike."""
import numpy as np
import torch

from .tables import per_size

Size = tuple[int, int]


@per_size
def resize_matrix(length: int, new_length: int, kernel: str = 'bilinear') -> np.ndarray:
    """Resampling of one axis as a constant float64 matrix (new_length, length), as `F.interpolate` does it along each axis, antialiased.

    kernel: 'bilinear' or 'bicubic'.
    """
    scale = length / new_length
    centre = (np.arange(new_length)[:, None] + 0.5) * scale - 0.5
    x = np.abs(np.arange(length) - centre) / max(scale, 1.)
    if kernel == 'bicubic':
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.))
    else:
        weights = np.maximum(1 - x, 0.)
    return weights / weights.sum(1, keepdims=True)


def resize_tokens(x: torch.Tensor, size: Size, new_size: Size, kernel: str = 'bilinear') -> torch.Tensor:
    """Resample the map (B, h * w, D) of one size to another: two matrix products, so that no runtime needs to know how."""
    if size == new_size:
        return x
    D = x.shape[2]
    rows, cols = (resize_matrix(n, m, kernel, like=x) for n, m in zip(size, new_size, strict=True))
    (h, w), (m, n) = size, new_size
    x = torch.matmul(rows, x.reshape(-1, h, w * D))
    x = torch.matmul(cols, x.reshape(-1, w, D))
    return x.reshape(-1, m * n, D)


def resize_table(table: torch.Tensor, size: Size, new_size: Size, kernel: str) -> torch.Tensor:
    """A position table (1, h * w, D) for another size, resampled in float32 at least (as timm does)."""
    if size == new_size:
        return table
    precise = table.float() if table.dtype in (torch.float16, torch.bfloat16) else table
    return resize_tokens(precise, size, new_size, kernel).to(table.dtype)
