"""Images: read from files, and made the input of a model; with numpy and pillow alone."""
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .terminal import printable

MAX_PIXELS = 2 ** 26  # of an image on its way into a model


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, turned the way its camera was held, the first picture of several.

    What has more than 8 bits is scaled: 16 bit grey from 0..65535, floats from 0..1. Floats up to 255 and 32 bit integers in 0..255 stay,
    as Pillow takes them. Transparency is dropped, as timm and the libraries of OpenMMLab drop it when they read.

    Raises ValueError where other numbers leave open which of them is white, and whatever Pillow stumbles over, such as a picture of more
    than 89 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what Pillow remarks of slight damage
        warnings.simplefilter('error', Image.DecompressionBombWarning)  # a small file could fill the memory
        return _read(path)


def _read(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        # Pillow reads 16 bit PNGs and PGMs as 32 bit integers, depending on its version
        deep = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')
        negative = getattr(image, 'tag_v2', {}).get(262) == 0  # a TIFF in which 0 is white; Pillow turns those of 8 bits itself
        image = ImageOps.exif_transpose(image)
        if deep:
            values = (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(255 - values if negative else values)
        elif image.mode in ('I', 'F'):
            image = Image.fromarray(_scaled(np.asarray(image)))
        return image.convert('RGB')


def _scaled(values: np.ndarray) -> np.ndarray:
    """Numbers of 32 bits, floats from 0 to 1 or any from 0 to 255 -> uint8."""
    if not (values.min() >= 0 and values.max() <= 255):  # as NaN is not
        raise ValueError(f'a picture of {values.dtype} with values from {values.min():g} to {values.max():g}: expected 8 or 16 bit, or '
                         'floats from 0 to 1; scale it first')
    return (values * (255 if values.dtype.kind == 'f' and values.max() <= 1 else 1)).round().astype(np.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a model: the same pixels as timm's transform for evaluation.

    size: (C, H, W), C 1 or 3. The image is scaled until it just covers (H, W) / crop_pct, of which the centre is cut out.
    mean, std: of each channel, of values from 0 to 1.
    interpolation: a name of Pillow's, such as 'bicubic'.

    Raises ValueError on values of another type or beyond what makes sense, and when called, on an image so elongated that it would take
    more than `MAX_PIXELS`.
    """
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float

    def __post_init__(self):
        for what, ok, expected in (
            ('size', _numbers(self.size, int, 1) and len(self.size) == 3 and self.size[0] in (1, 3), '1 (grey) or 3 (RGB), height, width'),
            ('mean', _numbers(self.mean, (int, float), -1e6), 'numbers, as many means as channels'),
            ('std', _numbers(self.std, (int, float), 1e-6), 'positive numbers, as many deviations as channels'),
            ('crop_pct', _numbers([self.crop_pct], (int, float), 0.1) and self.crop_pct <= 10, 'a number from 0.1 to 10'),
            ('interpolation', str(self.interpolation).upper() in Image.Resampling.__members__,
             f'one of {", ".join(name.lower() for name in Image.Resampling.__members__)}'),
        ):
            if not ok:
                raise ValueError(f'{what}={printable(repr(getattr(self, what)))}: expected {expected}.')
        if not len(self.mean) == len(self.std) == self.size[0]:
            raise ValueError(f'{len(self.mean)} means, {len(self.std)} deviations, {self.size[0]} channels: expected as many means and '
                             'deviations as channels.')
        if math.prod(self.size[1:]) > MAX_PIXELS // 4:
            raise ValueError(f'size={self.size}: expected at most {MAX_PIXELS // 4} pixels.')

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
        if math.prod(resized) > MAX_PIXELS:
            raise ValueError(f'an image of {image.width}x{image.height} would have {math.prod(resized)} pixels once its shorter side is as '
                             'long as the model wants: cut it first')
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


def _numbers(values: object, kind: type | tuple[type, ...], least: float, most: float = 1e6) -> bool:
    """Whether these are numbers of the kind, within the limits."""
    return isinstance(values, list | tuple) and all(
        isinstance(v, kind) and not isinstance(v, bool) and least <= v <= most for v in values)


def _offset(length: int, cut: int) -> int:
    """Where the centre begins; negative (black is added) if the image is smaller."""
    return round((length - cut) / 2) if length >= cut else -((cut - length) // 2)
