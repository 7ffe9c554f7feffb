"""What detectors and segmentors found in an image, as JSON data, pictures and lines of a table; with numpy and pillow alone."""
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .masks import encode_rle
from .pictures import clearest, draw_detections, draw_segmentation, palette


def objects(image: Image.Image, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, masks: np.ndarray | None,
            classes: Sequence[str]) -> tuple[dict, dict[str, Image.Image]]:
    """Boxes (N, 4), labels and scores (N,), best first, masks (N, H, W) or None, in pixels of the image; masks become COCO's codes.

    Where there are so many that the picture shows the clearest alone, `drawn` says how many.
    """
    found = [{'label': int(label), 'name': _name(classes, label), 'score': float(score), 'box': [round(float(v), 2) for v in box]}
             for box, label, score in zip(boxes, labels, scores, strict=True)]
    for item, mask in zip(found, () if masks is None else masks, strict=masks is not None):
        item['mask'] = encode_rle(mask)
    shown = clearest(boxes, scores)
    picture = draw_detections(image, boxes[shown], labels[shown], scores[shown], None if masks is None else masks[shown], classes)
    return {'objects': found, **({'drawn': len(shown)} if len(shown) < len(boxes) else {})}, {'picture': picture}


def regions(image: Image.Image, labels: np.ndarray, classes: Sequence[str]) -> tuple[dict, dict[str, Image.Image]]:
    """Labels (H, W), a class for every pixel of the image."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    shares = [{'class': int(i), 'name': _name(classes, i), 'share': float(counts[i] / labels.size)}
              for i in np.argsort(-counts, kind='stable') if counts[i]]
    drawn = Image.fromarray(labels.astype(np.uint8 if len(counts) <= 256 else np.uint16))
    if drawn.mode == 'L':
        drawn.putpalette([v for colour in palette(len(counts)) for v in colour])
    return {'classes': shares}, {'picture': draw_segmentation(image, labels, classes), 'labels': drawn}


def _name(classes: Sequence[str], label: int) -> str:
    return str(classes[label]) if label < len(classes) else f'class {label}'


def lines(found: dict, share: str) -> list[tuple]:
    """Of the five largest classes, by their 'probability' or 'share', or of the objects of each class."""
    if 'classes' in found:
        return [(c['name'], f'{c[share]:.1%}') for c in found['classes'][:5]]
    names = {}
    for o in found['objects']:
        names.setdefault(o['name'], []).append(o['score'])
    return [(f'{len(scores)} x {name}', f'{max(scores):.2f}') for name, scores in names.items()] or [('nothing', '')]
