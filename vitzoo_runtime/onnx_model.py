"""Run a file of `vitzoo export` with numpy, pillow and ONNX Runtime alone."""
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .images import Preprocessing
from .terminal import printable

NEEDED = ('task', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')
# task -> axes of the outputs that it has to have, with the one for the batch
OUTPUTS = {
    'classification': {'logits': (2,)}, 'detection': {'boxes': (2,), 'scores': (1,), 'labels': (1,)}, 'segmentation': {'seg': (3, 4)},
    'features': {},  # whatever they are called, with four
}
TASKS = tuple(OUTPUTS)
MAX_CLASSES = 1_000_000


class OnnxModel:
    """A file written by `vitzoo export`, ready to run.

    Attributes: `metadata` (what the file says of itself), `task` (one of `TASKS`), `preprocessing`, `class_names` (one a class),
    `score_threshold` (or None).

    Raises:
        ValueError: the file is missing, is no ONNX, was not written by `vitzoo export`, or says of itself what cannot be. Of the methods:
            the model gives something else than its task asks for, or values that are not finite.
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise ValueError(f'{path}: no such ONNX file.')
        try:
            import onnxruntime
        except ImportError as e:
            raise ImportError(f'onnxruntime could not be imported ({e}); it comes with: pip install onnxruntime') from e
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        except Exception as e:  # ONNX Runtime has no common base for its errors
            raise ValueError(f'{path}: ONNX Runtime cannot read this file ({e}).') from e
        self.metadata = {key: _parse(value) for key, value in self.session.get_modelmeta().custom_metadata_map.items()}
        missing = [key for key in NEEDED if key not in self.metadata]
        if missing:
            raise ValueError(f'{path} does not say how its images are prepared (no {", ".join(missing)} in its metadata). '
                             'Expected a file written by "vitzoo export" or vitzoo.export_onnx.')
        self.task = self.metadata['task']
        if self.task not in TASKS:
            raise ValueError(f'{path} is for the task {printable(repr(self.task))}; this command knows {", ".join(TASKS)}.')
        try:
            self.preprocessing = Preprocessing(*(_tuple(self.metadata[key]) for key in NEEDED[1:]))
            self.class_names = self._class_names()
            self.score_threshold = self._score_threshold()
            self._check_graph()
        except ValueError as e:
            raise ValueError(f'{path} cannot be used: {e} Was it changed after "vitzoo export"?') from e

    def _check_graph(self) -> None:
        image, *others = self.session.get_inputs()
        if others or image.name != 'image' or image.type != 'tensor(float)' or len(image.shape) != 4:
            raise ValueError('its input is not one float tensor "image" with four axes.')
        fixed = [length for length in image.shape[1:] if isinstance(length, int)]
        size = [number for number, length in zip(self.preprocessing.size, image.shape[1:], strict=True) if isinstance(length, int)]
        if fixed != size:
            raise ValueError(f'input_size is {list(self.preprocessing.size)}, but the graph takes {image.shape[1:]}.')
        outputs = {output.name for output in self.session.get_outputs()}
        missing = [name for name in OUTPUTS[self.task] if name not in outputs]
        if missing:
            raise ValueError(f'for {self.task} the graph lacks the output {missing[0]}.')
        for output in self.session.get_outputs():
            number = output.shape[-1] if output.name == 'logits' and self.task == 'classification' and output.shape else None
            if isinstance(number, int) and number != len(self.class_names):
                raise ValueError(f'num_classes is {len(self.class_names)}, but the graph gives {number} logits.')

    def _class_names(self) -> list[str]:
        number, names = self.metadata.get('num_classes', 0), self.metadata.get('class_names')
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_CLASSES:
            raise ValueError(f'num_classes={printable(repr(number))}: expected an integer from 0 to {MAX_CLASSES}.')
        if names is None:
            return [f'class {i}' for i in range(number)]
        if not isinstance(names, list) or len(names) != number or not all(isinstance(name, str) for name in names):
            raise ValueError(f'class_names={printable(repr(names)[:1000], 60)}: expected {number} strings, one for each class, or null.')
        return names

    def _score_threshold(self) -> float | None:
        value = self.metadata.get('score_threshold')
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1):
            raise ValueError(f'score_threshold={printable(repr(value))}: expected a number from 0 to 1, or null.')
        return value

    def run(self, image: Image.Image) -> dict[str, np.ndarray]:
        """One RGB image -> the model's outputs by name, without the batch axis."""
        return {name: value[0] for name, value in self._run(self.preprocessing(image)).items()}

    def fit(self, image: Image.Image) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
        """One RGB image, scaled until it just fits -> the outputs of a detector or segmentor by name, and (width, height) of the image in
        their pixels."""
        x, scaled = self.preprocessing.fit(image)
        found = self._run(x)
        (self._check_objects if self.task == 'detection' else self._check_regions)(found)
        return found, scaled

    def _check_objects(self, found: dict[str, np.ndarray]) -> None:
        number, size = len(found['scores']), self.preprocessing.size[1:]
        shapes = {'boxes': (number, 4), 'labels': (number,), 'masks': (number, *size)}
        for name, shape in shapes.items():
            if name in found and found[name].shape != shape:
                raise ValueError(f'the model gives {name} of shape {found[name].shape} for {number} scores, expected {shape}')
        self._check_labels(found['labels'])

    def _check_regions(self, found: dict[str, np.ndarray]) -> None:
        seg, size = found['seg'], self.preprocessing.size[1:]
        if seg.shape[-2:] != size or seg.ndim == 4 and seg.shape[1] not in (1, len(self.class_names)):
            raise ValueError(f'the model gives seg of shape {seg.shape}, expected {size} for each of {len(self.class_names)} classes')
        if seg.ndim == 4 and seg.shape[1] == 1 and self.score_threshold is None:
            raise ValueError('the file does not say from which score_threshold a pixel is of the class')
        if seg.ndim == 3:
            self._check_labels(seg)

    def _check_labels(self, labels: np.ndarray) -> None:
        if labels.dtype.kind not in 'iu' or labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(f'the model gives labels that are none of its {len(self.class_names)} classes')

    def _run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, {'image': x}), strict=True))
        for name, allowed in (OUTPUTS[self.task] or dict.fromkeys(found, (4,))).items():
            value = found[name]
            if value.ndim not in allowed or self.task != 'detection' and len(value) != 1:
                raise ValueError(f'the model gives {printable(name)} of shape {value.shape}, which is none of {self.task}')
            if value.dtype.kind not in 'fiub' or not np.isfinite(value).all():
                raise ValueError(f'the model gives {printable(name)} with values that are not finite numbers')
        return found

    def classify(self, image: Image.Image, top: int = 5) -> list[dict]:
        """The likeliest classes: [{'class': index, 'name', 'probability'}, ...], best first."""
        logits = self.run(image)['logits'].astype(np.float64)
        if len(logits) != len(self.class_names):
            raise ValueError(f'the model gives {len(logits)} logits for {len(self.class_names)} classes')
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind='stable')[:top]
        return [{'class': int(i), 'name': self.class_names[i], 'probability': float(probabilities[i])} for i in best]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _parse(value: str) -> object:
    """A value of the metadata: JSON; a string of other tools, such as ONNX Runtime's quantisation, stays as it is."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
