"""Drawn shapes as people have data: pictures of several sizes with a COCO file, or with a folder of label maps."""
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ['circle', 'box']


def draw(root: Path, num: int = 10, seed: int = 0) -> Path:
    """`root`/images, `root`/maps and `root`/objects.json: a circle and a box in each picture, not touching each other."""
    rng = np.random.default_rng(seed)
    for name in 'images', 'maps':
        (root / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(num):
        width, height = (160, 120) if i % 3 else (120, 160)
        picture, labels = Image.new('RGB', (width, height), tuple(rng.integers(60, 120, 3).tolist())), Image.new('L', (width, height))
        for label in range(2):
            radius = int(rng.integers(16, 26))
            x, y = (int(rng.integers(radius, half - radius)) for half in (width // 2, height))
            x += label * (width // 2)
            corners = [x - radius, y - radius, x + radius, y + radius]
            colour = tuple(rng.integers(180, 256, 3).tolist())
            for canvas, fill in (picture, colour), (labels, label + 1):
                shape = ImageDraw.Draw(canvas)
                (shape.ellipse if label == 0 else shape.rectangle)(corners, fill=fill)
            angles = np.arange(24) * np.pi / 12
            outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).round(1).flatten().tolist()
            left, top, right, bottom = corners
            annotations.append(dict(
                id=len(annotations) + 1, image_id=i, category_id=label + 1, iscrowd=0, area=4 * radius ** 2,
                bbox=[left, top, right - left, bottom - top],
                segmentation=[outline if label == 0 else [left, top, right, top, right, bottom, left, bottom]]))
        images.append(dict(id=i, file_name=f'{i}.jpg', width=width, height=height))
        picture.save(root / 'images' / f'{i}.jpg', quality=95)
        labels.save(root / 'maps' / f'{i}.png')
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    (root / 'objects.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return root
