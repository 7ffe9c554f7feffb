"""What all modules that are exported share: a copy of a model for images of one size, and what its file says of it."""
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitzoo.facts import model_name


class Deployed(nn.Module):
    """A copy of a model for images of one size.

    `output_names` and `onnx_metadata` are what `vitzoo.export_onnx` writes into the file.
    """
    exportable_dynamic_size = 'it is made for one size'
    output_names: tuple[str, ...] | None = None

    def __init__(self, model: nn.Module, size: Sequence[int]):
        super().__init__()
        if len(size) != 2 or not all(isinstance(length, int) and length > 0 for length in size):
            raise ValueError(f'size={size!r}: expected (height, width) in pixels')
        self.size = tuple(size)
        preprocessor = model.data_preprocessor
        mean, std = (getattr(preprocessor, name, torch.zeros(0)).flatten().tolist() for name in ('mean', 'std'))
        if not mean:
            raise ValueError('the data_preprocessor of the model has no mean and std, which an ONNX file has to state')
        # MMEngine and MMSegmentation call it differently
        if len(mean) == 3 and not getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False)):
            raise ValueError('the model takes BGR images: expected data_preprocessor=dict(bgr_to_rgb=True, ...)')
        # in a detector, images are padded after normalisation
        self.divisor, self.pad_value = getattr(preprocessor, 'pad_size_divisor', 1), float(getattr(preprocessor, 'pad_value', 0))
        classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
        self.onnx_metadata = dict(
            model=f'{type(model).__name__} on {model_name(model)}', mean=[v / 255 for v in mean], std=[v / 255 for v in std],
            interpolation='bilinear', crop_pct=1.0, class_names=None if classes is None else [str(name) for name in classes])
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def maps(self, image: Tensor) -> Sequence[Tensor]:
        """Image (B, C, H, W) -> the maps that the heads take."""
        height, width = self.size
        if image.shape[-2:] != self.size:
            raise ValueError(f'made for images of {height}x{width}, got {image.shape[-2]}x{image.shape[-1]}')
        return self.model.extract_feat(self.pad(image))

    def pad(self, image: Tensor) -> Tensor:
        """Made up to what the model wants."""
        height, width = self.size
        return F.pad(image, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value)

    def blank(self) -> Tensor:
        """An image (1, C, H, W) to find out what depends on the size alone."""
        return torch.zeros(1, len(self.onnx_metadata['mean']), *self.size, device=next(self.model.parameters()).device)
