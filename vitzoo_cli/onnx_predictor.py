"""Classes, objects, regions or feature maps by a file of `vitzoo export`, for `vitzoo predict`."""
import numpy as np
from PIL import Image

from vitzoo_runtime import findings
from vitzoo_runtime.onnx_model import OnnxModel
from vitzoo_runtime.pictures import draw_classes, draw_features


class OnnxPredictor:
    """Call it with an RGB image: what was found, as JSON data, and {'picture': ...} of it. `columns` and `lines` put that in a table."""

    columns_of = {'classification': ('class', 'probability'), 'detection': ('found', 'best score'), 'segmentation': ('class', 'share'),
                  'features': ('map', 'shape', 'mean length', 'longest')}

    def __init__(self, path: str, threshold: float = 0.):
        self.model = OnnxModel(path)
        self.threshold = threshold
        about = {key: self.model.metadata.get(key) for key in ('model', 'task', 'weights', 'source', 'license')}
        self.about = {'onnx': path, **about}
        self.columns = self.columns_of[self.model.task]
        self.right = self.columns[1:]

    def __call__(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        if self.model.task == 'classification':
            classes = self.model.classify(image)
            return {'classes': classes}, {'picture': draw_classes(image, classes)}
        if self.model.task == 'detection':
            return self.find_objects(image)
        if self.model.task == 'segmentation':
            return self.find_regions(image)
        maps = self.model.run(image)
        levels = {}
        for name, values in maps.items():
            lengths = np.linalg.norm(values.astype(np.float64), axis=0)
            levels[name] = {'shape': list(values.shape), 'mean_length': float(lengths.mean()), 'longest': float(lengths.max())}
        return {'features': levels}, {'picture': draw_features(self.model.preprocessing.crop(image), maps)}

    def find_objects(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        found, (width, height) = self.model.fit(image)
        good = found['scores'] >= self.threshold
        boxes = found['boxes'][good] * np.tile([image.width / width, image.height / height], 2)
        boxes = boxes.clip(0, [image.width, image.height] * 2)
        masks = None
        if 'masks' in found:
            masks = [_resize(mask[:height, :width], image.size) for mask in found['masks'][good]]
            masks = np.array(masks, bool).reshape(-1, image.height, image.width)
        return findings.objects(image, boxes, found['labels'][good], found['scores'][good], masks, self.model.class_names)

    def find_regions(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        found, (width, height) = self.model.fit(image)
        labels = found['seg'][0]
        if labels.ndim == 3:
            labels = labels.argmax(0) if len(labels) > 1 else _sigmoid(labels[0]) > self.model.score_threshold
        return findings.regions(image, _resize(labels[:height, :width], image.size), self.model.class_names)

    def lines(self, found: dict) -> list[tuple]:
        if 'features' not in found:
            return findings.lines(found, self.columns[1])
        return [(name, 'x'.join(map(str, level['shape'])), f'{level["mean_length"]:.3g}', f'{level["longest"]:.3g}')
                for name, level in found['features'].items()]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore'):
        return 1 / (1 + np.exp(-x))


def _resize(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) -> of an image of (width, height), int64; each pixel takes the nearest."""
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST), np.int64)
