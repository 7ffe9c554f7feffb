"""How far a file in a smaller precision is from the same file in float32, on images."""
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from vitzoo_runtime.files import images_below
from vitzoo_runtime.images import Preprocessing, read_image
from vitzoo_runtime.terminal import printable

from . import verify
from .verify import ExportError

MAX_ERROR, MIN_AGREEMENT = 0.1, 0.95  # what trained weights may lose
MAX_RANDOM_ERROR = 0.5  # of random weights: a sign of a broken file, since nobody knows what they should give
MATCHING_IOU = 0.5
SURE = 0.3  # the score from which an object has to be found again
MOST_IMAGES = 64  # of a folder with more, so many, spread over all


@dataclass(frozen=True)
class Drift:
    """Quantised against float32. What a task does not have is None; agreement is a share from 0 to 1.

    images, source: how many images, and which.
    error: of the outputs, relative: the root mean square of the difference over that of float32, the median over the images, of the
        output where it is largest. None for a detector, whose outputs are lists.
    top1: share of images with the same likeliest class. labels: share of pixels with the same class.
    boxes: share of the objects (score of at least 0.3; of all, where none has) of either file that the other has too: of the same class,
        with an intersection over union of at least 0.5. box_iou, mask_iou: mean intersection over union of these pairs.
    objects: how many objects were looked for, in both files together.
    """
    images: int
    source: str
    error: float | None = None
    top1: float | None = None
    labels: float | None = None
    boxes: float | None = None
    box_iou: float | None = None
    mask_iou: float | None = None
    objects: int | None = None

    def to_dict(self) -> dict:
        """What applies; floats to four digits."""
        return {key: float(f'{value:.4g}') if isinstance(value, float) else value
                for key, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        words = dict(error='relative error {:.3f}', top1='top-1 agreement {:.1%}', labels='label agreement {:.1%}',
                     boxes='{:.1%} of the boxes agree', box_iou='box IoU {:.3f}', mask_iou='mask IoU {:.3f}')
        said = (text.format(getattr(self, name)) for name, text in words.items() if getattr(self, name) is not None)
        return ', '.join(said) or 'nothing was found in either'

    def beyond(self, trained: bool) -> str | None:
        """What is beyond the limits, in words, or None."""
        limit = MAX_ERROR if trained else MAX_RANDOM_ERROR
        if self.error is not None and not self.error <= limit:
            return f'relative error {self.error:.3f}, {limit} is allowed'
        for name in ('top1', 'labels', 'boxes') if trained else ():
            value = getattr(self, name)
            if value is not None and value < MIN_AGREEMENT:
                return f'{name} agreement {value:.3f}, {MIN_AGREEMENT} is asked for'
        return None


@dataclass(frozen=True)
class Images:
    """Images for measuring: files or pictures, and what to call them. Empty: those that come with the installation."""
    items: tuple[Path | Image.Image, ...] = ()
    source: str = ''

    def prepared(self, task: str, preprocessing: Preprocessing | None,
                 size: tuple[int, int, int]) -> tuple[list[np.ndarray], str, list[str]]:
        """Inputs (1, C, H, W), what they are, and remarks on those that could not be read. Raises ValueError if none is left."""
        if preprocessing is None:
            if self.items:
                raise ValueError(f'calibration: photographs have 1 or 3 channels, the model takes {size[0]}.')
            return _random(size), f'{len(verify.SEEDS)} random images, since photographs do not have {size[0]} channels', []
        prepare = (lambda image: preprocessing.fit(image)[0]) if task in ('detection', 'segmentation') else preprocessing
        if not self.items:
            try:
                from ..datasets.samples import ABOUT, sample_images
                return [prepare(image) for image in sample_images().values()], f'built in: {ABOUT}', []
            except ImportError:
                return _random(size), f'{len(verify.SEEDS)} random images, since scikit-learn or matplotlib is not installed', []
        arrays, notes = [], []
        for item in self.items:
            try:
                arrays.append(prepare(item if isinstance(item, Image.Image) else read_image(item)))
            except Exception as e:  # whatever decoders stumble over
                notes.append(f'{printable(str(item), 200)} was skipped ({type(e).__name__}: {printable(str(e), 200)})')
        if not arrays:
            raise ValueError(f'calibration: none of {len(self.items)} images could be read. {notes[0]}.')
        return arrays, self.source, notes


def find(calibration: str | os.PathLike | Sequence | None) -> Images:
    """What is meant by the argument `calibration`. Raises ValueError where there is no image."""
    if calibration is None:
        return Images()
    if isinstance(calibration, str | os.PathLike):
        folder = Path(calibration)
        items, source = [folder] if folder.is_file() else images_below(folder) if folder.is_dir() else [], folder.name or 'a folder'
        if not items:
            raise ValueError(f'calibration={str(calibration)!r}: expected a folder with images.')
    else:
        items = [Path(item) if isinstance(item, str | os.PathLike) else item for item in calibration]
        source = 'the images that were given'
        if not items or not all(isinstance(item, Image.Image) or isinstance(item, Path) and item.is_file() for item in items):
            raise ValueError(f'calibration: expected a folder, or images and image files, at least one; got {len(items)} things, of which '
                             'some are neither.' if items else 'calibration is empty: expected at least one image.')
    if len(items) > MOST_IMAGES:
        items = [items[i * len(items) // MOST_IMAGES] for i in range(MOST_IMAGES)]
    return Images(tuple(items), source)


def _random(size: tuple[int, int, int]) -> list[np.ndarray]:
    return [verify.photo(seed, size).numpy() for seed in verify.SEEDS]


Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def measure(reference: Run, smaller: Run, inputs: Iterable[np.ndarray], source: str, task: str, threshold: float | None = None) -> Drift:
    """Compare two files, each a function from an input (1, C, H, W) to outputs by name.

    threshold: from which a pixel is of the class, of a segmentor with one.

    Raises:
        ExportError: on values that are not finite, or outputs of another shape.
    """
    errors, same, objects = [], [], []
    for x in inputs:
        want, got = reference(x), smaller(x)
        for name, values in got.items():
            if not np.isfinite(values).all():
                raise ExportError(f'{name}: the file gives values that are not finite.')
            if task != 'detection' and values.shape != want[name].shape:
                raise ExportError(f'{name}: the file gives shape {values.shape} where float32 gives {want[name].shape}.')
        if task == 'detection':
            objects.append(_compare_objects(want, got))
            continue
        errors.append(max((_relative(got[name], want[name]) for name in want if want[name].dtype.kind == 'f'), default=0.))
        if task == 'classification':
            same.append(float((want['logits'].argmax(1) == got['logits'].argmax(1)).mean()))
        elif task == 'segmentation':
            same.append(float((_labels(want['seg'], threshold) == _labels(got['seg'], threshold)).mean()))
    count = len(errors) + len(objects)
    if task == 'detection':
        number = sum(o[0] for o in objects)
        pairs = [pair for o in objects for pair in o[2]]
        masks = [mask for _, mask in pairs if mask is not None]
        return Drift(count, source, boxes=sum(o[1] for o in objects) / number if number else None, objects=number,
                     box_iou=_mean([iou for iou, _ in pairs]), mask_iou=_mean(masks))
    named = {'classification': 'top1', 'segmentation': 'labels'}.get(task)
    return Drift(count, source, error=float(np.median(errors)), **({named: float(np.mean(same))} if named else {}))


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm((got - want).ravel()) / max(np.linalg.norm(want.ravel()), np.finfo(np.float32).tiny))


def _labels(seg: np.ndarray, threshold: float | None) -> np.ndarray:
    """(B, H, W) of logits (B, K, H, W), or of labels."""
    if seg.ndim == 3:
        return seg
    return seg.argmax(1) if seg.shape[1] > 1 else seg[:, 0] > np.log(threshold / (1 - threshold))


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _compare_objects(want: dict, got: dict) -> tuple[int, int, list[tuple[float, float | None]]]:
    """Of an image: objects looked for in both files, how many of them the other has, and box and mask IoU of the pairs."""
    sides = [(want, got), (got, want)]
    sure = [side['scores'] >= SURE for side, _ in sides]
    if not any(map(np.any, sure)):
        sure = [np.ones(len(s), bool) for s in sure]
    number = found = 0
    pairs = []
    for i, (ours, theirs) in enumerate(sides):
        partners = _match(ours, theirs, np.flatnonzero(sure[i]))
        number += int(sure[i].sum())
        found += len(partners)
        if i == 0:
            masks = 'masks' in ours
            pairs = [(iou, _mask_iou(ours['masks'][a], theirs['masks'][b]) if masks else None) for a, b, iou in partners]
    return number, found, pairs


def _match(ours: dict, theirs: dict, wanted: np.ndarray) -> list[tuple[int, int, float]]:
    """Each wanted object of ours, best first, with the free object of theirs that it overlaps most: (ours, theirs, IoU)."""
    if not len(theirs['scores']):
        return []
    overlaps = box_iou(*(torch.from_numpy(side['boxes']).double() for side in (ours, theirs))).numpy()
    overlaps[ours['labels'][:, None] != theirs['labels']] = 0
    pairs = []
    for a in wanted:
        b = overlaps[a].argmax()
        if overlaps[a, b] >= MATCHING_IOU:
            pairs.append((int(a), int(b), float(overlaps[a, b])))
            overlaps[:, b] = 0  # taken
    return pairs


def _mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.
