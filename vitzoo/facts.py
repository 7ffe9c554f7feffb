"""What is asked of any model, whoever made it: its name, the shape of its images, its precision."""
import torch
from torch import nn

from .arguments import MOST_PIXELS, as_type, show


def model_name(model: nn.Module) -> str:
    """The registered name where the model knows one, else its class."""
    config = next((c for m in model.modules() if (c := getattr(m, 'pretrained_cfg', None))), {})
    return config.get('architecture') or type(model).__name__


def image_shape(model: nn.Module, input_size: int | tuple[int, ...]) -> tuple[int, int, int]:
    """Complete an image size, `H` for square, `(H, W)` or `(C, H, W)`, to (C, H, W) with the channels of the model.

    Raises:
        ValueError: if it is none of these.
    """
    size = as_type('input_size', input_size, int | tuple[int, ...])
    numbers = (size, size) if isinstance(size, int) else size
    if len(numbers) not in (2, 3) or not all(0 < n <= MOST_PIXELS for n in numbers):
        raise ValueError(f'input_size={show(input_size)}: expected a number, (H, W) or (C, H, W), positive and at most {MOST_PIXELS}.')
    if len(numbers) == 3:
        return numbers
    channels = getattr(model, 'in_chans', None) or next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return channels, *numbers


def float_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
