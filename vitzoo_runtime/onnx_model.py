"""Run a file of `vitzoo export` with numpy, pillow and ONNX Runtime alone."""
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .images import Preprocessing

NEEDED = ('task', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')
TASKS = ('classification', 'features', 'detection', 'segmentation')


class OnnxModel:
    """A file written by `vitzoo export`, ready to run.

    Attributes: `metadata` (what the file says of itself), `task` (one of `TASKS`), `preprocessing`.

    Raises:
        ValueError: the file is missing, is no ONNX, or was not written by `vitzoo export`.
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise ValueError(f'{path}: no such ONNX file.')
        try:
            import onnxruntime
        except ImportError as e:
            raise ImportError(f'onnxruntime could not be imported ({e}); it comes with: pip install onnxruntime') from e
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        except Exception as e:  # ONNX Runtime has no common base for its errors
            raise ValueError(f'{path}: ONNX Runtime cannot read this file ({e}).') from e
        try:
            self.metadata = {key: json.loads(value) for key, value in self.session.get_modelmeta().custom_metadata_map.items()}
        except json.JSONDecodeError:
            self.metadata = {}
        missing = [key for key in NEEDED if key not in self.metadata]
        if missing:
            raise ValueError(f'{path} does not say how its images are prepared (no {", ".join(missing)} in its metadata). '
                             'Expected a file written by "vitzoo export" or vitzoo.export_onnx.')
        self.task = self.metadata['task']
        if self.task not in TASKS:
            raise ValueError(f'{path} is for the task {self.task!r}; this command knows {", ".join(TASKS)}.')
        self.preprocessing = Preprocessing(tuple(self.metadata['input_size']), tuple(self.metadata['mean']), tuple(self.metadata['std']),
                                           self.metadata['interpolation'], self.metadata['crop_pct'])
        names = self.metadata.get('class_names')
        self.class_names = names or [f'class {i}' for i in range(self.metadata.get('num_classes') or 0)]

    def run(self, image: Image.Image) -> dict[str, np.ndarray]:
        """One RGB image -> the model's outputs by name, without the batch axis."""
        names = [output.name for output in self.session.get_outputs()]
        return {name: value[0] for name, value in zip(names, self.session.run(names, {'image': self.preprocessing(image)}), strict=True)}

    def fit(self, image: Image.Image) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
        """One RGB image, scaled until it just fits -> the outputs of a detector or segmentor by name, and (width, height) of the image in
        their pixels."""
        x, scaled = self.preprocessing.fit(image)
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {'image': x}), strict=True)), scaled

    def classify(self, image: Image.Image, top: int = 5) -> list[dict]:
        """The likeliest classes: [{'class': index, 'name', 'probability'}, ...], best first."""
        logits = self.run(image)['logits'].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind='stable')[:top]
        return [{'class': int(i), 'name': self.class_names[i], 'probability': float(probabilities[i])} for i in best]
