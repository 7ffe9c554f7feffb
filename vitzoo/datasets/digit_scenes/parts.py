"""The parts of a data set on their way to disk: detection, segmentation, classification."""
import hashlib
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np

from vitzoo.extras import require
from vitzoo_runtime.masks import encode_rle

from .scenes import CLASSES, SPLITS, Preset, Scene

IMG_SUFFIX = SEG_MAP_SUFFIX = '.png'
MANIFEST = 'manifest.json'
PICTURES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')  # what torchvision's ImageFolder takes

_SPLIT = '|'.join(SPLITS)


class Part:
    """One part on its way to disk: everything goes into `folder`, the manifest last.

    Subclasses say which files they write: `pattern` matches their names and no others, so that what somebody else put beside them is
    recognised and never deleted. In folders that match `scanned`, those who train take every picture that there is.
    """
    name: str
    pattern: str
    scanned: str | None = None

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
        (self.folder / MANIFEST).write_text(json.dumps({**manifest, 'checksum': _checksum(manifest)}))

    @classmethod
    def writes(cls, name: str) -> bool:
        """Whether a file of this name, relative to the part's folder, is one of its own."""
        return re.fullmatch(cls.pattern, name, re.ASCII) is not None

    @classmethod
    def is_extra(cls, name: str) -> bool:
        """Whether a file that the manifest does not have would be taken for one of the part's."""
        return cls.writes(name) or cls.scanned is not None and re.match(cls.scanned, name) and name.lower().endswith(PICTURES)

    @classmethod
    def read_manifest(cls, folder: Path) -> dict:
        """What is in a folder of this part. Raises ValueError if it is damaged, and OSError."""
        path = folder / MANIFEST
        try:
            if path.exists() and not path.is_file():
                raise ValueError('not even a file')
            manifest = json.loads(path.read_text(encoding='utf-8'))
            whole = manifest.pop('checksum') == _checksum(manifest)
            files, objects = manifest['files'], manifest['objects']
            whole = whole and all(cls.writes(name) and len(about) == 2 for name, about in files.items()) and {*objects} <= {*SPLITS} \
                and all(type(number) is int for number in (*objects.values(), *(n for about in files.values() for n in about))) \
                and isinstance(manifest['fingerprint'], str)
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f'{path} is damaged')
        return manifest


def _checksum(manifest: dict) -> int:
    return zlib.crc32(json.dumps(manifest).encode())


class Detection(Part):
    name = 'detection'
    pattern = rf'({_SPLIT})/\d{{6}}\.png|annotations/det_({_SPLIT})\.json'

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


class Segmentation(Part):
    name = 'segmentation'
    pattern = rf'(img_dir|ann_dir)/({_SPLIT})/\d{{6}}\.png'
    scanned = '(img_dir|ann_dir)/'

    @staticmethod
    def num_train(preset):
        return preset.seg_train

    def add(self, preset, split, index, scene):
        self.write_png(f'img_dir/{split}/{index:06d}{IMG_SUFFIX}', scene.image)
        self.write_png(f'ann_dir/{split}/{index:06d}{SEG_MAP_SUFFIX}', scene.semantic)
        self.objects[split] += len(scene.labels)


class Classification(Part):
    name = 'classification'
    pattern = rf'({_SPLIT})/\d/\d{{6}}_\d+\.png'
    scanned = f'({_SPLIT})/'

    @staticmethod
    def num_train(preset):
        return preset.cls_train

    def add(self, preset, split, index, scene):
        for i in np.flatnonzero(scene.visible >= preset.crop_visible):
            self.write_png(f'{split}/{scene.labels[i]}/{index:06d}_{i}{IMG_SUFFIX}', crop(scene, i, preset.crop_margin))
            self.objects[split] += 1


def crop(scene: Scene, i: int, margin: float) -> np.ndarray:
    """(S, S, 3) square around the visible part of digit `i`, moved where it would leave the scene: nothing is padded or resampled."""
    x, y, width, height = scene.boxes[i]
    side = min(round(max(width, height) * (1 + 2 * margin)), *scene.image.shape[:2])
    top = np.clip(y + (height - side) // 2, 0, scene.image.shape[0] - side)
    left = np.clip(x + (width - side) // 2, 0, scene.image.shape[1] - side)
    return np.ascontiguousarray(scene.image[top:top + side, left:left + side])


WRITERS = {part.name: part for part in (Detection, Segmentation, Classification)}
PARTS = tuple(WRITERS)
