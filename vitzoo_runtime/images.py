"""Images: read from files, and made the input of a model; with numpy and pillow alone."""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, turned the way its camera was held; 16 bit grey becomes 8 bit. Raises whatever Pillow stumbles over."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I'):
            values = np.asarray(image).astype(np.int64)
            image = Image.fromarray((values // (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
        return image.convert('RGB')


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a model: the same pixels as timm's transform for evaluation.

    size: (C, H, W). The image is scaled until it just covers (H, W) / crop_pct, of which the centre is cut out.
    """
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float

    def __post_init__(self):
        if self.size[0] not in (1, 3) or len(self.mean) != self.size[0] or len(self.std) != self.size[0]:
            raise ValueError(f'input_size={self.size}, mean={self.mean}, std={self.std}: expected a grey (1) or RGB (3) input and as many '
                             'means and deviations.')
        if self.interpolation.upper() not in Image.Resampling.__members__:
            raise ValueError(f'interpolation={self.interpolation!r}: expected one of '
                             f'{", ".join(name.lower() for name in Image.Resampling.__members__)}.')

    def crop(self, image: Image.Image) -> Image.Image:
        """What the model sees of the image."""
        _, height, width = self.size
        rows, columns = math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)
        if rows == columns:
            short, long = min(image.size), max(image.size)
            long = int(rows * long / short)
            resized = (rows, long) if image.width <= image.height else (long, rows)
        else:
            ratio = min(image.height / rows, image.width / columns)
            resized = round(image.width / ratio), round(image.height / ratio)
        image = image.resize(resized, Image.Resampling[self.interpolation.upper()])
        left, top = _offset(image.width, width), _offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image -> normalised float32 (1, C, H, W)."""
        crop = self.crop(image if self.size[0] == 3 else image.convert('L'))
        return self.normalise(crop)

    def normalise(self, image: Image.Image) -> np.ndarray:
        """An image in the model's channels -> float32 (1, C, H, W)."""
        x = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / np.float32(255)
        x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1))[None]

    def fit(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """RGB image, scaled until it just fits -> float32 (1, C, H, W), 0 to the right and below, and its (width, height) in there."""
        channels, height, width = self.size
        ratio = min(height / image.height, width / image.width)
        scaled = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        if channels == 1:
            image = image.convert('L')
        x = np.zeros((1, channels, height, width), np.float32)
        x[:, :, :scaled[1], :scaled[0]] = self.normalise(image.resize(scaled, Image.Resampling[self.interpolation.upper()]))
        return x, scaled


def _offset(length: int, cut: int) -> int:
    """Where the centre begins; negative (black is added) if the image is smaller."""
    return round((length - cut) / 2) if length >= cut else -((cut - length) // 2)
