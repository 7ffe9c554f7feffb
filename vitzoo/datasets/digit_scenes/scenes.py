"""Scenes: how they may look, the digits they are made of, and the function that makes one."""
import functools
import hashlib
from dataclasses import dataclass, fields, replace
from statistics import NormalDist

import numpy as np

from vitzoo.extras import require

CLASSES = tuple(f'digit {d}' for d in range(10))
SEG_CLASSES = ('background', *CLASSES)
SEG_PALETTE = [[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [67, 99, 216], [245, 130, 49], [145, 30, 180], [70, 240, 240],
               [240, 50, 230], [188, 246, 12], [250, 190, 190]]
SPLITS = ('train', 'val', 'test')
# The digits of `test`: those of the fifth kept from training that the 100 validation scenes of `standard`, seed 0, do not draw, so that
# these scenes are what they were before there was a third split.
TEST_SOURCES = (
    3, 55, 60, 65, 66, 72, 93, 112, 114, 115, 133, 153, 154, 163, 169, 182, 192, 201, 217, 256, 260, 261, 262, 272, 297, 316, 317,
    352, 355, 429, 431, 447, 455, 457, 471, 480, 485, 486, 495, 507, 508, 518, 537, 543, 549, 552, 558, 561, 570, 577, 585, 588, 589,
    591, 594, 600, 601, 613, 622, 625, 626, 632, 640, 655, 658, 685, 686, 692, 740, 763, 791, 796, 801, 803, 804, 826, 851, 858, 868,
    871, 879, 889, 895, 913, 920, 921, 942, 947, 952, 956, 971, 983, 1028, 1033, 1040, 1043, 1097, 1106, 1126, 1128, 1143, 1144, 1179,
    1181, 1197, 1225, 1256, 1257, 1260, 1266, 1283, 1291, 1300, 1303, 1307, 1309, 1311, 1326, 1337, 1346, 1357, 1378, 1399, 1408,
    1412, 1452, 1468, 1475, 1492, 1553, 1571, 1583, 1598, 1622, 1659, 1663, 1684, 1694, 1697, 1708, 1729, 1737, 1751, 1762, 1782)


@dataclass(frozen=True)
class Preset:
    """What the scenes look like and how many there are. Lengths in pixels, colours and ink in 0..1, limits inclusive.

    det_train, seg_train, cls_train: scenes that each part takes from the training split; val, test: scenes of those splits in every part.
    The background is a field of uniform random colours in field_min..field_max, upsampled, plus normal noise of standard deviation `noise`.
    Its range sets the difficulty; that of `standard` was narrowed until small models learn it from scratch in minutes on a CPU, that of
    `hard` is the whole one.
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
    test: int = 100

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
            ('cls_train, val and test at least 10, so that every class occurs', min(self.cls_train, self.val, self.test) >= 10),
            ('at most 999999 scenes', max(self.det_train, self.seg_train, self.cls_train, self.val, self.test) <= 999_999),
        ):
            if not ok:
                raise ValueError(f'expected {what}, got {self}')


PRESETS = {
    'standard': Preset(),
    'hard': Preset(field_min=0, field_max=1),
    'micro': Preset(det_train=24, seg_train=24, cls_train=24, val=12, test=12),
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


@functools.cache
def source_digits() -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
    """Images (1797, 8, 8) in 0..16, labels (1797,), and for each split the indices of its digits, one array a class.

    The split is fixed, not drawn from the seed of a data set: data sets of different seeds may be mixed without a leak. In `val` another
    of its digits stands in the place of each that is in `test`, so some are there twice, and a draw by place gives what it gave before.
    """
    digits = require('sklearn.datasets', 'viz').load_digits()
    rng = np.random.RandomState(0)
    split = {name: [] for name in SPLITS}
    for label in range(10):
        order = rng.permutation(np.flatnonzero(digits.target == label))
        num_val = len(order) // 5
        split['train'].append(np.sort(order[num_val:]))
        held_out = np.sort(order[:num_val])
        is_test = np.isin(held_out, TEST_SOURCES)
        split['test'].append(held_out[is_test])
        held_out[is_test] = np.resize(held_out[~is_test], is_test.sum())
        split['val'].append(held_out)
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
        digest.update(scene_bytes(scene))
    return digest.hexdigest()


def scene_bytes(scene: Scene) -> bytes:
    arrays = scene.image, scene.labels.astype('<i4'), scene.boxes.astype('<i4'), np.packbits(scene.masks)
    return str([array.shape for array in arrays]).encode() + b''.join(array.tobytes() for array in arrays)
