"""Input checks that every model runs before its first layer."""
import torch
from timm.models import register_notrace_function


@register_notrace_function
def check_image(x: torch.Tensor, in_chans: int, min_size: tuple[int, int] = (1, 1)) -> None:
    """Raise ValueError unless x is a floating-point (B, in_chans, H, W) batch with H and W of at least min_size."""
    if x.ndim != 4:
        raise ValueError(f'Expected an image batch of shape (B, {in_chans}, H, W), got {x.ndim} dimensions: {tuple(x.shape)}.')
    if x.shape[1] != in_chans:
        raise ValueError(f'Expected {in_chans} channels, got {x.shape[1]} (shape {tuple(x.shape)}). '
                         f'Layout is (B, C, H, W); build the model with in_chans={x.shape[1]} for other images.')
    if not x.is_floating_point():
        raise ValueError(f'Expected a floating-point image, got {x.dtype}. Scale and normalise it first (timm.data.create_transform).')
    if x.shape[2] < min_size[0] or x.shape[3] < min_size[1]:
        raise ValueError(f'Image of {x.shape[2]}x{x.shape[3]} is too small: the minimum is {min_size[0]}x{min_size[1]}.')
