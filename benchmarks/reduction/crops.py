"""Crops of digit scenes as tensors, made in memory and kept in one file."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitzoo.datasets.digit_scenes import VERSION, crop, make_scene, resolve_preset
from vitzoo_runtime.files import replacing

SIDE = 46  # pixels of a crop; the model sees a window of it
WINDOW = 40
MEAN, STD = 0.5, 0.15  # of the scenes' colours
SCENES = {'train': 3000, 'val': 500}  # no digit of the validation part, which is the test here, occurs in training


def crops(folder: str | Path, scenes: dict[str, int] = SCENES) -> dict[str, tuple[Tensor, Tensor]]:
    """Split -> crops (N, 3, SIDE, SIDE) uint8, labels (N,): of the preset 'standard', seed 0."""
    path = Path(folder) / f'crops-{VERSION}-{scenes["train"]}-{scenes["val"]}.npz'
    if not path.is_file():
        made = {}
        for split, count in scenes.items():
            made[f'{split}_x'], made[f'{split}_y'] = _make(split, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            np.savez(temporary, **made)
    with np.load(path) as arrays:
        return {split: (torch.from_numpy(arrays[f'{split}_x']), torch.from_numpy(arrays[f'{split}_y'])) for split in scenes}


def _make(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    preset, images, labels = resolve_preset('standard'), [], []
    for index in range(count):
        scene = make_scene(preset, 0, split, index)
        for i in np.flatnonzero(scene.visible >= preset.crop_visible):
            image = Image.fromarray(crop(scene, i, preset.crop_margin)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            images.append(np.asarray(image).transpose(2, 0, 1))
            labels.append(scene.labels[i])
    return np.stack(images), np.array(labels)


def window(images: Tensor, top: int = (SIDE - WINDOW) // 2, left: int = (SIDE - WINDOW) // 2) -> Tensor:
    """uint8 crops -> normalised windows (N, 3, WINDOW, WINDOW); without a place, those in the middle."""
    return (images[:, :, top:top + WINDOW, left:left + WINDOW].float() / 255 - MEAN) / STD
