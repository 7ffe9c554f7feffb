"""Digit scenes: real handwritten digits on textured backgrounds, with boxes, masks, semantic maps and crops.

The digits are the 1,797 images of 8x8 pixels inside scikit-learn's wheel (`sklearn.datasets.load_digits`: the test part of Alpaydin and
Kaynak's "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0). They are scaled, coloured and laid over each other, which makes a
small but real task for detection, instance and semantic segmentation and classification, without a download. A fixed fifth of every class
is kept for validation: no source digit occurs in both splits, whatever the seed.

    python -m vitzoo.datasets.digit_scenes --out data/digit_scenes --preset standard --seed 0

writes three folders, each complete in itself and with its `manifest.json`:

    detection/annotations/det_{train,val}.json   COCO: boxes, masks (uncompressed RLE), category id = digit + 1, later ids lie on top
    detection/{train,val}/000000.png             128x160 RGB
    segmentation/img_dir/{train,val}/000000.png  the same scenes, more of them
    segmentation/ann_dir/{train,val}/000000.png  8 bit grey: 0 background, digit + 1 elsewhere (no pixel is ignored)
    classification/{train,val}/7/000000_2.png    square crops of the same scenes, in one folder a class

Scene `i` of a split is a function of (preset, seed, split, i) alone, so the parts show the same scenes and a longer data set begins with
the shorter one. All arithmetic that reaches a pixel is in integers (or in floats that hold integers exactly), and random numbers come from
`numpy.random.RandomState`, whose stream NumPy has promised not to change (NEP 19): the same seed gives the same pixels everywhere.
"""
import argparse
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from uuid import uuid4

import numpy as np

from vitzoo.extras import require
from vitzoo_runtime.files import replacing
from vitzoo_runtime.masks import decode_rle, encode_rle

CLASSES = tuple(f'digit {d}' for d in range(10))
SEG_CLASSES = ('background', *CLASSES)
SEG_PALETTE = [[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [67, 99, 216], [245, 130, 49], [145, 30, 180], [70, 240, 240],
               [240, 50, 230], [188, 246, 12], [250, 190, 190]]
IMG_SUFFIX = SEG_MAP_SUFFIX = '.png'
SPLITS = ('train', 'val')
VERSION = 1  # of what is written; a folder with another version is rebuilt


# ---- presets ------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Preset:
    """What the scenes look like and how many there are. Lengths in pixels, colours and ink in 0..1, limits inclusive.

    det_train, seg_train, cls_train: scenes that each part takes from the training split; val: validation scenes of every part.
    The background is a field of uniform random colours in field_min..field_max, upsampled, plus normal noise of standard deviation `noise`.
    Its range sets the difficulty; that of `standard` was narrowed until small models learn it from scratch in minutes on a CPU.
    A digit's mask is where its ink exceeds `ink`; its opacity rises from 0 to 1 over a range of `edge` around that, so that the edge of the
    mask is where digit and background mix half and half.
    min_visible: a digit of which a smaller share of the mask is visible is left out of the scene altogether, neither drawn nor annotated.
    crop_visible: a digit of which a smaller share is visible gets no crop. crop_margin: on each side of a crop, in longer box sides.
    """
    height: int = 128
    width: int = 160
    min_digits: int = 2
    max_digits: int = 5
    min_side: int = 28
    max_side: int = 60
    field_height: int = 9
    field_width: int = 11
    field_min: float = 0.4
    field_max: float = 0.6
    noise: float = 0.03
    colour_distance: float = 0.15
    ink: float = 0.4
    edge: float = 0.3
    min_visible: float = 0.3
    crop_visible: float = 0.6
    crop_margin: float = 0.15
    det_train: int = 400
    seg_train: int = 3000
    cls_train: int = 3000
    val: int = 100

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int if field.type is int else (int, float)):
                raise ValueError(f'{field.name}={value!r}: expected {"an integer" if field.type is int else "a number"}')
            if field.type is float:
                object.__setattr__(self, field.name, float(value))  # 0 and 0.0 are the same preset
        for what, ok in (
            ('1 <= min_digits <= max_digits', 1 <= self.min_digits <= self.max_digits),
            ('8 <= min_side <= max_side <= min(height, width)', 8 <= self.min_side <= self.max_side <= min(self.height, self.width)),
            ('height and width up to 4096', max(self.height, self.width) <= 4096),
            ('field_height in 1..height and field_width in 1..width',
             1 <= self.field_height <= self.height and 1 <= self.field_width <= self.width),
            ('0 <= field_min <= field_max <= 1', 0 <= self.field_min <= self.field_max <= 1),
            ('noise in 0..1', 0 <= self.noise <= 1),
            ('colour_distance in 0..0.3', 0 <= self.colour_distance <= 0.3),
            ('edge in 0.01..2 * ink, and ink up to 0.9', 0.01 <= self.edge <= 2 * self.ink <= 1.8),
            ('min_visible and crop_visible above 0, up to 1', 0 < self.min_visible <= 1 and 0 < self.crop_visible <= 1),
            ('crop_margin in 0..1', 0 <= self.crop_margin <= 1),
            ('det_train and seg_train at least 1', min(self.det_train, self.seg_train) >= 1),
            ('cls_train and val at least 10, so that every class occurs', min(self.cls_train, self.val) >= 10),
            ('at most 999999 scenes', max(self.det_train, self.seg_train, self.cls_train, self.val) <= 999_999),
        ):
            if not ok:
                raise ValueError(f'expected {what}, got {self}')


PRESETS = {
    'standard': Preset(),
    'micro': Preset(det_train=24, seg_train=24, cls_train=24, val=12),
}


def resolve_preset(preset: str | Preset, **overrides) -> Preset:
    """The preset of that name (or the one given), with some of its numbers replaced; ValueError for what does not exist."""
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f'preset {preset!r} does not exist; expected one of {sorted(PRESETS)} or a Preset')
        preset = PRESETS[preset]
    elif not isinstance(preset, Preset):
        raise ValueError(f'preset {preset!r}: expected one of {sorted(PRESETS)} or a Preset')
    unknown = sorted(set(overrides) - {field.name for field in fields(Preset)})
    if unknown:
        raise ValueError(f'a preset has no {unknown[0]!r}; it has {", ".join(field.name for field in fields(Preset))}')
    return replace(preset, **overrides)


# ---- one scene ----------------------------------------------------------------------------------------------------------------------

@functools.cache
def source_digits() -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
    """Images (1797, 8, 8) in 0..16, labels (1797,), and for each split the indices of its digits, one array a class.

    The split is fixed, not drawn from the seed of a data set: data sets of different seeds may be mixed without a leak.
    """
    digits = require('sklearn.datasets', 'viz').load_digits()
    rng = np.random.RandomState(0)
    split = {'train': [], 'val': []}
    for label in range(10):
        order = rng.permutation(np.flatnonzero(digits.target == label))
        num_val = len(order) // 5
        split['val'].append(np.sort(order[:num_val]))
        split['train'].append(np.sort(order[num_val:]))
    return digits.images, digits.target, split


_ONE = 1 << 10  # the weights below in fixed point


@functools.cache
def _bicubic(num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in) weights of bicubic upsampling (Catmull-Rom, centres aligned, edges repeated), integers of scale `_ONE`.

    They are float64 so that BLAS multiplies them; sums of integers below 2**53 are exact in any order.
    """
    position = (np.arange(num_out) + 0.5) * num_in / num_out - 0.5
    first = np.floor(position).astype(int)
    weights = np.zeros((num_out, num_in))
    for tap in range(-1, 3):
        x = np.abs(position - (first + tap))
        weight = np.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        np.add.at(weights, (np.arange(num_out), np.clip(first + tap, 0, num_in - 1)), np.rint(weight * _ONE))
    return weights


@functools.cache
def _noise_table(std: float) -> np.ndarray:
    """4096 equally likely values of normal noise in sixteenths of a grey level: its quantiles."""
    normal = NormalDist()
    return np.array([round(normal.inv_cdf((i + 0.5) / 4096) * std * 255 * 16) for i in range(4096)], np.int32)


@dataclass(frozen=True, eq=False)
class Scene:
    """Digits in drawing order: a later one occludes an earlier one. `n` digits, 1 <= n <= max_digits."""
    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (n,) int64, 0..9
    masks: np.ndarray  # (n, H, W) bool, what is visible of each digit: disjoint
    boxes: np.ndarray  # (n, 4) int64, x, y, width, height of the visible mask
    visible: np.ndarray  # (n,) float64, visible share of the mask
    sources: np.ndarray  # (n,) int64, index into scikit-learn's digits
    colours: np.ndarray  # (n, 3) uint8
    background: np.ndarray  # (H, W, 3) uint8, without noise and digits

    @property
    def semantic(self) -> np.ndarray:
        """(H, W) uint8: 0 background, digit + 1 elsewhere."""
        return ((self.labels + 1)[:, None, None] * self.masks).sum(0).astype(np.uint8)


def make_scene(preset: Preset, seed: int, split: str, index: int) -> Scene:
    """Scene `index` of a split.

    The digit drawn last is of class `index % 10`, so that any ten scenes in a row show all classes; the others are drawn at random.
    The colour of a digit keeps a Euclidean distance (RGB, 0..1) of at least `preset.colour_distance` from the background, before noise, at
    every pixel of its mask and from the mean over the mask.
    """
    height, width = preset.height, preset.width
    rng = np.random.RandomState([seed, SPLITS.index(split), index])

    def integers(low, high, size=None):  # a fixed dtype: the default one differs between platforms
        return rng.randint(low, high + 1, size, dtype=np.int64)

    darkest, brightest = round(preset.field_min * 255), round(preset.field_max * 255)
    field = integers(darkest, brightest, (preset.field_height, preset.field_width, 3)).astype(np.float64)
    rows, columns = _bicubic(preset.field_height, height), _bicubic(preset.field_width, width)
    background = np.tensordot(rows, field, 1).transpose(0, 2, 1) @ columns.T  # (H, 3, W)
    background = np.floor(background.transpose(0, 2, 1) * (16 / _ONE ** 2)).astype(np.int32)  # sixteenths of a grey level
    noise = _noise_table(preset.noise)[np.frombuffer(rng.bytes(background.size * 2), '<u2') & 4095].reshape(background.shape)
    image = (background + noise + 8 >> 4).clip(0, 255)
    background = (background + 8 >> 4).clip(0, 255)

    images, _, split_sources = source_digits()
    num = integers(preset.min_digits, preset.max_digits)
    labels = integers(0, 9, num)
    labels[-1] = index % 10
    threshold = int(preset.ink * 65536)
    sources, places, inks = [], [], []
    for label in labels:
        candidates = split_sources[split][label]
        source = candidates[integers(0, len(candidates) - 1)]
        side = integers(preset.min_side, preset.max_side)
        top, left = integers(0, height - side), integers(0, width - side)
        scale = _bicubic(8, side)
        ink = (scale @ images[source] @ scale.T).clip(0, 16 * _ONE ** 2)
        sources.append(source)
        places.append(np.s_[top:top + side, left:left + side])
        inks.append((ink * (1 / 256)).astype(np.int64))  # full ink is 2**16

    # From the last drawn to the first: what is left out must neither be seen nor hide anything.
    masks, visible = np.zeros((num, height, width), bool), np.zeros(num)
    covered = np.zeros((height, width), bool)
    for i in reversed(range(num)):
        full = inks[i] > threshold
        masks[i][places[i]] = full & ~covered[places[i]]
        visible[i] = masks[i].sum() / full.sum()
        if visible[i] >= preset.min_visible:
            covered |= masks[i]
    kept = np.flatnonzero(visible >= preset.min_visible)

    colours, boxes = [], []
    for i in kept:
        behind = background[places[i]][inks[i] > threshold]
        colour = _far_colour(integers, behind, preset.colour_distance)
        opacity = ((inks[i] - threshold) * 256 // int(preset.edge * 256) + 32768).clip(0, 65536)[..., None]
        image[places[i]] = image[places[i]] * (65536 - opacity) + colour * opacity + 32768 >> 16
        y, x = np.flatnonzero(masks[i].any(1)), np.flatnonzero(masks[i].any(0))
        colours.append(colour)
        boxes.append((x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1))
    return Scene(image.astype(np.uint8), labels[kept], masks[kept], np.array(boxes), visible[kept], np.array(sources)[kept],
                 np.array(colours, np.uint8), background.astype(np.uint8))


def _far_colour(integers, behind: np.ndarray, distance: float) -> np.ndarray:
    """A random colour (3,) at least `distance` away from all of `behind` (pixels, 3) and from their mean."""
    limit = (distance * 255) ** 2
    behind = behind.astype(np.float64)  # holds integers: the product below is exact and much faster than differences
    squares = (behind * behind).sum(1)
    mean = behind.sum(0) / len(behind)
    for _ in range(1000):  # at a distance of 0.15 about every second colour passes
        colours = integers(0, 255, (4, 3))
        nearest = ((colours * colours).sum(1) + (squares[:, None] - 2 * behind @ colours.T.astype(np.float64)).min(0))
        far = (nearest >= limit) & (((colours - mean) ** 2).sum(1) >= limit)
        if far.any():
            return colours[far.argmax()]
    raise ValueError(f'no colour is {distance} away from the background; choose a smaller colour_distance')


def fingerprint(scenes) -> str:
    """SHA-256 over pixels, labels, boxes and visible masks of an iterable of scenes: no file format and no encoder has a part in it."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(_scene_bytes(scene))
    return digest.hexdigest()


def _scene_bytes(scene: Scene) -> bytes:
    arrays = scene.image, scene.labels.astype('<i4'), scene.boxes.astype('<i4'), np.packbits(scene.masks)
    return str([array.shape for array in arrays]).encode() + b''.join(array.tobytes() for array in arrays)


# ---- files --------------------------------------------------------------------------------------------------------------------------

class _Part:
    """One part on its way to disk: everything goes into `folder`, the manifest last.

    Subclasses say which files they write: `pattern` matches their names and no others, so that what somebody else put beside them is
    recognised and never deleted.
    """
    name: str
    pattern: str

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, tuple[int, int]] = {}  # name -> bytes, CRC-32
        self.objects = dict.fromkeys(SPLITS, 0)
        self.digest = hashlib.sha256()

    @staticmethod
    def num_train(preset: Preset) -> int:
        raise NotImplementedError

    def add(self, preset: Preset, split: str, index: int, scene: Scene) -> None:
        raise NotImplementedError

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.files[name] = len(data), zlib.crc32(data)

    def write_png(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        require('PIL.Image', 'viz').fromarray(array).save(buffer, 'PNG', compress_level=1)
        self.write(name, buffer.getvalue())

    def finish(self, specification: dict) -> None:
        manifest = {**specification, 'objects': self.objects, 'fingerprint': self.digest.hexdigest(), 'files': self.files}
        (self.folder / MANIFEST).write_text(json.dumps(manifest))


class _Detection(_Part):
    name = 'detection'
    pattern = r'(train|val)/\d{6}\.png|annotations/det_(train|val)\.json'

    def __init__(self, folder):
        super().__init__(folder)
        self.images = {split: [] for split in SPLITS}
        self.annotations = {split: [] for split in SPLITS}

    @staticmethod
    def num_train(preset):
        return preset.det_train

    def add(self, preset, split, index, scene):
        file_name = f'{index:06d}{IMG_SUFFIX}'
        self.write_png(f'{split}/{file_name}', scene.image)
        self.images[split].append({'id': index + 1, 'file_name': file_name, 'height': preset.height, 'width': preset.width})
        for label, mask, box, visible, source in zip(scene.labels, scene.masks, scene.boxes, scene.visible, scene.sources, strict=True):
            self.objects[split] += 1
            self.annotations[split].append({
                'id': self.objects[split],  # from 1: pycocotools takes a match with annotation 0 for no match
                'image_id': index + 1, 'category_id': int(label) + 1, 'iscrowd': 0, 'bbox': box.tolist(), 'area': int(mask.sum()),
                'segmentation': encode_rle(mask), 'visible': round(float(visible), 4), 'source': int(source)})

    def finish(self, specification):
        categories = [{'id': d + 1, 'name': name, 'supercategory': 'digit'} for d, name in enumerate(CLASSES)]
        for split in SPLITS:
            self.write(f'annotations/det_{split}.json', json.dumps({
                'info': {'description': 'vitzoo digit scenes', **specification}, 'licenses': [],
                'categories': categories, 'images': self.images[split], 'annotations': self.annotations[split]}).encode())
        super().finish(specification)


class _Segmentation(_Part):
    name = 'segmentation'
    pattern = r'(img_dir|ann_dir)/(train|val)/\d{6}\.png'

    @staticmethod
    def num_train(preset):
        return preset.seg_train

    def add(self, preset, split, index, scene):
        self.write_png(f'img_dir/{split}/{index:06d}{IMG_SUFFIX}', scene.image)
        self.write_png(f'ann_dir/{split}/{index:06d}{SEG_MAP_SUFFIX}', scene.semantic)
        self.objects[split] += len(scene.labels)


class _Classification(_Part):
    name = 'classification'
    pattern = r'(train|val)/\d/\d{6}_\d+\.png'

    @staticmethod
    def num_train(preset):
        return preset.cls_train

    def add(self, preset, split, index, scene):
        for i in np.flatnonzero(scene.visible >= preset.crop_visible):
            self.write_png(f'{split}/{scene.labels[i]}/{index:06d}_{i}{IMG_SUFFIX}', crop(scene, i, preset.crop_margin))
            self.objects[split] += 1


_PARTS = {part.name: part for part in (_Detection, _Segmentation, _Classification)}
PARTS = tuple(_PARTS)
MANIFEST = 'manifest.json'


def crop(scene: Scene, i: int, margin: float) -> np.ndarray:
    """(S, S, 3) square around the visible part of digit `i`, moved where it would leave the scene: nothing is padded or resampled."""
    x, y, width, height = scene.boxes[i]
    side = min(round(max(width, height) * (1 + 2 * margin)), *scene.image.shape[:2])
    top = np.clip(y + (height - side) // 2, 0, scene.image.shape[0] - side)
    left = np.clip(x + (width - side) // 2, 0, scene.image.shape[1] - side)
    return np.ascontiguousarray(scene.image[top:top + side, left:left + side])


@dataclass(frozen=True)
class DigitScenes:
    """Where a built data set lies. `status` says of every part that was asked for whether it was reused, or why it was built."""
    root: Path
    preset: Preset
    seed: int
    status: dict[str, str]
    classes: tuple[str, ...] = CLASSES
    seg_classes: tuple[str, ...] = SEG_CLASSES

    def annotations(self, split: str) -> Path:
        """COCO file; its images are in `images(split)`."""
        return self.root / 'detection' / 'annotations' / f'det_{split}.json'

    def images(self, split: str) -> Path:
        return self.root / 'detection' / split

    def seg_images(self, split: str) -> Path:
        return self.root / 'segmentation' / 'img_dir' / split

    def seg_maps(self, split: str) -> Path:
        return self.root / 'segmentation' / 'ann_dir' / split

    def crops(self, split: str) -> Path:
        """ImageFolder with one folder a class, named 0 to 9."""
        return self.root / 'classification' / split

    def manifest(self, part: str) -> dict:
        return json.loads((self.root / part / MANIFEST).read_text())


def _flaw(folder: Path, specification: dict, pattern: str) -> str | None:
    """Why a part's folder cannot be used as it is, or None: every file that it should hold is there with its size and its CRC, and no
    image beside them (folders are scanned by those who train). Files with other names are of no concern."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, found = dict(manifest['files']), {key: manifest[key] for key in specification}
    except FileNotFoundError:
        return 'not there' if not folder.exists() else f'no {MANIFEST}'
    except (ValueError, KeyError, TypeError, OSError):
        return f'{MANIFEST} is damaged'
    if found != specification:
        return 'another preset, seed or version'
    extra = next((name for name in _names(folder) if name not in files and re.fullmatch(pattern, name)), None)
    if extra:
        return f'{extra} does not belong there'
    for name, size_and_crc in files.items():
        try:
            data = (folder / name).read_bytes()
        except OSError:
            return f'{name} is missing'
        if [len(data), zlib.crc32(data)] != size_and_crc:
            return f'{name} is damaged'
    return None


def _names(folder: Path) -> list[str]:
    """All files below a folder, relative, with forward slashes."""
    return [os.path.relpath(os.path.join(path, file), folder).replace(os.sep, '/') for path, _, names in os.walk(folder) for file in names]


def _refuse_foreign(folder: Path, pattern: str) -> None:
    """ValueError where replacing a folder would delete what was not written here."""
    if folder.is_symlink() or folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is not an ordinary folder; remove it or choose another root')
    for name in _names(folder):
        if name != MANIFEST and not re.fullmatch(pattern, name):
            raise ValueError(f'{folder} is to be rebuilt, but {name} in it was not written by digit_scenes; '
                             'move it away or choose another root')


def _install(built: Path, target: Path, specification: dict, pattern: str) -> None:
    """Move a finished folder to its place. Of several processes one wins, and the others find its folder complete."""
    while True:
        try:
            os.rename(built, target)  # replaces nothing but an empty folder
            return
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or e.errno == errno.EACCES and not target.exists():
                raise
        if _flaw(target, specification, pattern) is None:
            shutil.rmtree(built)
            return
        old = target.with_name(f'.old-{target.name}-{uuid4().hex[:12]}')
        try:
            os.rename(target, old)
        except FileNotFoundError:
            continue  # another process was quicker
        shutil.rmtree(old, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what a killed process left behind: nobody builds for an hour."""
    for path in [*root.glob('.building-*'), *root.glob('.old-*')]:
        if re.fullmatch(rf'\.(building|old)-({"|".join(PARTS)})-[0-9a-f]{{12}}', path.name) and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def build(root: str | Path, preset: str | Preset = 'standard', seed: int = 0, *, parts: Sequence[str] = PARTS, progress: bool = True,
          **overrides) -> DigitScenes:
    """Make sure that the parts lie below `root`, complete, for this preset and seed; what is there already is checked and reused.

    A part is a folder of its own (`root/detection`, ...). It is written beside its place and renamed when it is complete, so that it is
    there as a whole or not at all; an interrupted build leaves the previous one untouched. A folder that is damaged (a file missing, too
    many or with other bytes than were written) or belongs to another preset, seed or version is replaced, unless it holds files that were
    not written here.

    Args:
        root: folder, made if needed.
        preset: a name in `PRESETS` or a `Preset`; `overrides` replace numbers of it (`det_train=50`).
        seed: 0 to 2**32 - 1.
        parts: some of 'detection', 'segmentation', 'classification'.
        progress: whether to show a progress bar (on stderr).

    Raises:
        ValueError: bad argument, a root that is a file, or a folder to be replaced that holds foreign files; before anything is written.
        ImportError: scikit-learn or pillow is missing (extra `viz`).
    """
    preset = resolve_preset(preset, **overrides)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2 ** 32:
        raise ValueError(f'seed {seed!r}: expected an integer from 0 to 2**32 - 1')
    if isinstance(parts, str) or not parts or not set(parts) <= set(PARTS):
        raise ValueError(f'parts {parts!r}: expected a sequence of some of {PARTS}')
    if not isinstance(root, str | os.PathLike) or not str(root):
        raise ValueError(f'root {root!r}: expected the path of a folder')
    root, seed = Path(root), int(seed)
    if root.exists() and not root.is_dir():
        raise ValueError(f'root {str(root)!r} is a file; expected a folder')

    specification = {'name': 'vitzoo digit scenes', 'version': VERSION, 'preset': asdict(preset), 'seed': seed}
    status = {}
    for name in dict.fromkeys(parts):
        flaw = _flaw(root / name, {**specification, 'part': name}, _PARTS[name].pattern)
        if flaw:
            _refuse_foreign(root / name, _PARTS[name].pattern)
        status[name] = f'built ({flaw})' if flaw else 'reused'
    missing = [name for name in status if status[name] != 'reused']
    if missing:
        source_digits(), require('PIL.Image', 'viz')
        _build(root, preset, seed, missing, specification, progress)
    return DigitScenes(root, preset, seed, status)


def _build(root: Path, preset: Preset, seed: int, names: list[str], specification: dict, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    parts = [_PARTS[name](root / f'.building-{name}-{uuid4().hex[:12]}') for name in names]
    num_train = {part.name: part.num_train(preset) for part in parts}
    jobs = [('train', index) for index in range(max(num_train.values()))] + [('val', index) for index in range(preset.val)]
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            for split, index in bar.track(jobs, description='digit scenes'):
                scene = make_scene(preset, seed, split, index)
                for part in parts:
                    if split == 'val' or index < num_train[part.name]:
                        part.add(preset, split, index, scene)
                        part.digest.update(_scene_bytes(scene))
        for part in parts:
            part_specification = {**specification, 'part': part.name}
            part.finish(part_specification)
            _install(part.folder, root / part.name, part_specification, part.pattern)
    finally:
        for part in parts:  # those that were installed are no longer there
            shutil.rmtree(part.folder, ignore_errors=True)


# ---- looking at it ------------------------------------------------------------------------------------------------------------------

def preview(data: str | Path | DigitScenes, path: str | Path, *, split: str = 'val', num: int = 12, columns: int = 3,
            scale: int = 2) -> Path:
    """Draw a sheet of the first `num` scenes of the part `detection`: left as they are, right with visible masks, boxes and labels."""
    root = data.root if isinstance(data, DigitScenes) else Path(data)
    if split not in SPLITS:
        raise ValueError(f'split {split!r}: expected one of {SPLITS}')
    for name, value in ('num', num), ('columns', columns), ('scale', scale):
        if value < 1:
            raise ValueError(f'{name}={value}: expected at least 1')
    annotations = root / 'detection' / 'annotations' / f'det_{split}.json'
    if not annotations.is_file():
        raise ValueError(f'{annotations} does not exist; build the part detection below {root} first')
    Image, ImageDraw = require('PIL.Image', 'viz'), require('PIL.ImageDraw', 'viz')
    coco = json.loads(annotations.read_text())
    images = coco['images'][:num]
    gap, rows = 4, -(-len(images) // columns)
    width, height = images[0]['width'] * scale, images[0]['height'] * scale
    sheet = Image.new('RGB', ((2 * width + 2 * gap) * columns - gap, (height + gap) * rows - gap), 'white')
    for i, image in enumerate(images):
        picture = np.asarray(Image.open(root / 'detection' / split / image['file_name']).convert('RGB'))
        objects = [a for a in coco['annotations'] if a['image_id'] == image['id']]
        drawn = picture.copy()
        for a in objects:
            mask = decode_rle(a['segmentation'])
            drawn[mask] = drawn[mask] * 0.25 + np.array(SEG_PALETTE[a['category_id']]) * 0.75
        panels = [Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST) for array in (picture, drawn)]
        draw = ImageDraw.Draw(panels[1])
        for a in objects:
            x, y, w, h = (v * scale for v in a['bbox'])
            draw.rectangle((x, y, x + w - 1, y + h - 1), outline='white')
            draw.text((x + 2, y), f'{a["category_id"] - 1}', fill='white', stroke_width=1, stroke_fill='black')
        left, top = i % columns * (2 * width + 2 * gap), i // columns * (height + gap)
        sheet.paste(panels[0], (left, top))
        sheet.paste(panels[1], (left + width, top))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, 'PNG')
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m vitzoo.datasets.digit_scenes', description='Build the digit scenes.')
    parser.add_argument('--out', default='data/digit_scenes', help='folder (default: %(default)s)')
    parser.add_argument('--preset', default='standard', help=f'one of {", ".join(PRESETS)} (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--parts', nargs='+', default=PARTS, metavar='PART', help=f'some of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--set', nargs='+', default=[], metavar='NAME=NUMBER', help='other numbers than those of the preset')
    parser.add_argument('--preview', metavar='PNG', help='also draw some scenes with their boxes and masks')
    parser.add_argument('--json', action='store_true', help='print JSON, without a progress bar')
    args = parser.parse_args(argv)
    try:
        overrides = {}
        for item in args.set:
            name, separator, value = item.partition('=')
            if not separator:
                raise ValueError(f'--set {item!r}: expected NAME=NUMBER')
            overrides[name] = json.loads(value)
        start = time.perf_counter()
        data = build(args.out, args.preset, args.seed, parts=args.parts, progress=not args.json, **overrides)
        seconds = time.perf_counter() - start
        picture = preview(data, args.preview) if args.preview else None
    except (ValueError, ImportError, OSError) as e:
        print(f'error: {e}', file=sys.stderr)
        return 2

    parts = {}
    for name, status in data.status.items():
        manifest = data.manifest(name)
        parts[name] = {'path': str(data.root / name), 'status': status, 'objects': manifest['objects'], 'files': len(manifest['files']),
                       'bytes': sum(size for size, _ in manifest['files'].values()), 'fingerprint': manifest['fingerprint']}
    if args.json:
        print(json.dumps({'root': str(data.root), 'seed': data.seed, 'preset': asdict(data.preset), 'seconds': round(seconds, 2),
                          'parts': parts, 'preview': picture and str(picture)}, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table
    table = Table(title=f'digit scenes in {data.root}, {seconds:.1f} s', title_justify='left')
    for column in 'part', 'status', 'digits train + val', 'files', 'MB':
        table.add_column(column, justify='left' if column in ('part', 'status') else 'right')
    for name, part in parts.items():
        table.add_row(name, part['status'], f'{part["objects"]["train"]} + {part["objects"]["val"]}', str(part['files']),
                      f'{part["bytes"] / 1e6:.1f}')
    Console().print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
