"""What runs a model: each opened once, then called as `run(names, feed)`, where `feed` is {'image': (B, C, H, W) float32} and the result a
list of arrays, one a name. ONNX Runtime's own sessions are such; here are the others, and the door to all."""
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from ..extras import require
from .verify import CHOICE_TOLERANCE, SEEDS, TOLERANCE, ExportError, open_session, photo

NAMES = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}  # that take ONNX files
EXTRAS = {'onnxruntime': 'onnx', 'openvino': 'openvino'}


class Runtime(Protocol):
    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names."""


class PyTorch:
    """A module, on the CPU, in the precision that it has; outputs are taken in order, whatever they are called."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        self.model, self.dtype = model, dtype

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = self.model(torch.from_numpy(feed['image']).to(self.dtype))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return [output.float().numpy() if output.is_floating_point() else output.numpy() for output in outputs]


class Port(NamedTuple):
    """An input or output of a file; a length that is open is None. As ONNX Runtime's own, which have more."""
    name: str
    shape: list[int | None]


class OpenVino:
    """An ONNX file in OpenVINO on the CPU, in float32, or in what the file is quantised to.

    It is compiled once for each shape of an image: lengths that stay open cost time.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        openvino = require('openvino', 'openvino')
        self.core = openvino.Core()
        self.options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'ENABLE_CPU_PINNING': False}
        self.requests = {}
        with self._errors('read'):
            self.model = self.core.read_model(os.fspath(path))

    def get_inputs(self) -> list[Port]:
        return [_port(port) for port in self.model.inputs]

    def get_outputs(self) -> list[Port]:
        return [_port(port) for port in self.model.outputs]

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        shape = tuple(tuple(array.shape) for array in feed.values())
        if shape not in self.requests:
            with self._errors('compile'):
                model = self.model.clone()
                model.reshape({name: list(array.shape) for name, array in feed.items()})
                self.requests[shape] = self.core.compile_model(model, 'CPU', self.options).create_infer_request()
        found = self.requests[shape].infer(dict(feed), share_inputs=True)
        return [found[name] for name in names]

    @staticmethod
    @contextmanager
    def _errors(what: str):
        try:
            yield
        except RuntimeError as e:
            raise ExportError(f'OpenVINO cannot {what} the file: {e}') from e


def _port(port) -> Port:
    return Port(port.any_name, [length.get_length() if length.is_static else None for length in port.partial_shape])


def open_file(path: str | os.PathLike, runtime: str = 'onnxruntime') -> Runtime:
    """An ONNX file in 'onnxruntime' or 'openvino', on one CPU thread.

    Raises:
        ValueError: on another name.
        ExportError: if the runtime cannot read the file.
        ImportError: if its extra is not installed.
    """
    check_names([runtime])
    return open_session(os.fspath(path)) if runtime == 'onnxruntime' else OpenVino(path)


def check_names(runtimes: Sequence[str]) -> None:
    """Raise ValueError on a runtime that is not known, ImportError on one that is not installed."""
    for name in runtimes:
        if name not in NAMES:
            raise ValueError(f'runtime {name!r}: expected {" or ".join(map(repr, NAMES))}.')
        require(name, EXTRAS[name])


def compare_runtimes(path: str | os.PathLike, runtime: str, size: tuple[int, int, int], *, strict: bool = True) -> float:
    """Largest difference of a runtime's outputs to ONNX Runtime's, as a share of an output's largest value, over the four images of
    (C, H, W) that `export_onnx` checks with.

    One image of the four may differ by up to `CHOICE_TOLERANCE`, as that of a model that chooses; it does not count.

    Raises:
        ExportError: on other shapes or, if `strict`, on more than `TOLERANCE` in a second image or on what is beyond either.
    """
    reference, other = open_file(path), open_file(path, runtime)
    feed_name, names = reference.get_inputs()[0].name, [output.name for output in reference.get_outputs()]
    found = []
    for seed in SEEDS:
        feed = {feed_name: photo(seed, size).numpy()}
        pairs = list(zip(other.run(names, feed), reference.run(names, feed), strict=True))
        if any(got.shape != want.shape for got, want in pairs):
            raise ExportError(f'{NAMES[runtime]} gives outputs of other shapes than ONNX Runtime.')
        found.append(max(float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(np.float32).tiny)) for got, want in pairs))
    *others, largest = sorted(found)
    if strict and (largest > CHOICE_TOLERANCE or max(others) > TOLERANCE):
        raise ExportError(f'{NAMES[runtime]} differs from ONNX Runtime by {largest:.1e} of the largest value, {TOLERANCE:.0e} is allowed.')
    return largest if largest <= TOLERANCE or not strict else max(others)
