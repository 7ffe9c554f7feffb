"""Classes or feature maps by a file of `vitzoo export`, for `vitzoo predict`."""
import numpy as np
from PIL import Image

from . import pictures
from .onnx_model import OnnxModel


class OnnxPredictor:
    """Call it with an RGB image: what was found, as JSON data, and {'picture': ...} of it. `columns` and `lines` put that in a table."""

    def __init__(self, path: str):
        self.model = OnnxModel(path)
        self.about = {'onnx': path, 'model': self.model.metadata.get('model'), 'task': self.model.task}
        classifies = self.model.task == 'classification'
        self.columns = ('class', 'probability') if classifies else ('map', 'shape', 'mean length', 'longest')
        self.right = self.columns[1:]

    def __call__(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        if self.model.task == 'classification':
            classes = self.model.classify(image)
            return {'classes': classes}, {'picture': pictures.classification(image, classes)}
        maps = self.model.run(image)
        levels = {}
        for name, values in maps.items():
            lengths = np.linalg.norm(values, axis=0)
            levels[name] = {'shape': list(values.shape), 'mean_length': float(lengths.mean()), 'longest': float(lengths.max())}
        return {'features': levels}, {'picture': pictures.features(self.model.preprocessing.crop(image), maps)}

    def lines(self, found: dict) -> list[tuple]:
        if 'classes' in found:
            return [(c['name'], f'{c["probability"]:.1%}') for c in found['classes']]
        return [(name, 'x'.join(map(str, level['shape'])), f'{level["mean_length"]:.3g}', f'{level["longest"]:.3g}')
                for name, level in found['features'].items()]
