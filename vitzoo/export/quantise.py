"""ONNX files in 8 and 16 bits, made of a checked file in float32 and kept only if they are worth it.

- 'int8': every product with a constant (MatMul, Gemm) in 8 bits, weights per output channel, activations by the range that they have in the
  image at hand. Needs no images; convolutions stay float32, since runtimes have no fast kernel for them with ranges that change.
- 'int8-static': convolutions and what they feed too, with ranges from images.
- 'fp16': weights and values in float16, for runtimes that have it; input and output stay float32.
"""
import json
import logging
import os
import platform
import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitzoo_runtime.onnx_model import OnnxModel

from ..arguments import show
from ..profiling.latency import take_turns
from . import drift, verify
from .drift import Drift, Images
from .verify import ExportError

PRECISIONS = ('fp32', 'int8', 'int8-static', 'fp16')
INSTRUCTIONS = ('amx_int8', 'avx512_vnni', 'avx_vnni', 'avx512f', 'avx2', 'asimddp', 'i8mm')  # as Linux calls those that matter for 8 bits
MIN_WEIGHT = 32 * 32  # of a product that is worth to quantise
PREPARED = ('onnx.quant.pre_process', 'onnxruntime.quant')  # what ONNX Runtime's quantiser looks for, else it advises to prepare the file


@dataclass(frozen=True)
class Quantisation:
    """A smaller file against the file in float32 that it was made of.

    speed_up: times as fast, in turns: median, lowest and highest over the rounds; None if not timed.
    latency_ms, file_size (bytes): of 'fp32' and of the precision.
    cpu: the instructions of this machine that matter for 8 bits, of those in `INSTRUCTIONS`; 'unknown' where it does not say.
    forced: what it was kept in spite of, or None.
    """
    precision: str
    drift: Drift
    file_size: dict[str, int]
    latency_ms: dict[str, float]
    speed_up: tuple[float, float, float] | None
    cpu: str
    forced: str | None = None

    def rows(self) -> list[tuple[str, str]]:
        """What it says, for a table of two columns."""
        size, full = self.file_size[self.precision], self.file_size['fp32']
        rows = [('precision', f'{self.precision}, {size / full:.2f} of the {full / 1e6:.1f} MB of fp32'),
                ('drift from fp32', f'{self.drift}, {self.drift.images} images: {self.drift.source}')]
        if self.speed_up:
            (median, low, high), latency = self.speed_up, self.latency_ms
            rows.append(('latency against fp32', f'{latency["fp32"]:.2f} ms, {self.precision} {latency[self.precision]:.2f} ms: '
                         f'{median:.2f}x [{low:.2f}, {high:.2f}] on a CPU with {self.cpu}'))
        return rows


def instructions() -> str:
    """Which of `INSTRUCTIONS` this CPU has, as Linux says; 'unknown' elsewhere."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return 'unknown'
    flags = next((line.partition(':')[2].split() for line in lines if line.lower().startswith(('flags', 'features'))), [])
    return ', '.join(name for name in INSTRUCTIONS if name in flags) or f'none of those for 8 bits ({platform.machine()})'


def check_arguments(precision: str, calibration: object, force: bool, rounds: int) -> None:
    """Raise ValueError before any work."""
    if precision not in PRECISIONS:
        raise ValueError(f'precision={show(precision)}: expected {", ".join(map(repr, PRECISIONS[:-1]))} or {PRECISIONS[-1]!r}.')
    if precision == 'fp32' and (calibration is not None or force):
        raise ValueError("calibration and force_precision are for precision='int8', 'int8-static' or 'fp16'.")
    if precision.startswith('int8') and not rounds and not force:
        raise ValueError(f'precision={precision!r} with rounds=0: a file in 8 bits is kept if it is faster, which has to be measured; '
                         'expected at least one round, or force_precision=True.')


def quantise(path: Path, precision: str, images: Images, batches: Sequence[int], rounds: int, force: bool,
             notes: list[str]) -> Quantisation:
    """Put the file at `path` into a smaller precision, in place; remarks go to `notes`.

    batches: of images, in which the new file has to run.

    Raises:
        ExportError: if the file cannot be made, does not run, is not faster (8 bits alone) or drifts too far; the last two are let pass by
            `force`.
        ValueError: if none of the images can be read.
    """
    session = verify.open_session(str(path))
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    size, task, trained = tuple(metadata['input_size']), metadata['task'], metadata['weights'] != 'random'
    preprocessing = OnnxModel(path).preprocessing if size[0] in (1, 3) else None
    inputs, source, remarks = images.prepared(task, preprocessing, size)
    notes += remarks
    seen, judged = inputs, inputs
    if precision == 'int8-static':  # judged by images that the ranges are not from
        seen, judged = (inputs[::2], inputs[1::2]) if len(inputs) > 1 else (inputs, inputs)

    smaller = path.with_name(f'{path.stem}-{precision}{path.suffix}')
    try:
        with _silent():
            _WRITERS[precision](path, smaller, seen)
        other = verify.open_session(str(smaller))
        for batch in batches:
            _run(other, np.concatenate([judged[i % len(judged)] for i in range(batch)]))
        found = drift.measure(lambda x: _run(session, x), lambda x: _run(other, x), judged, source, task,
                              metadata.get('score_threshold'))
        speed_up, latency = _time(session, other, judged[0], precision, rounds) if rounds else (None, {})
        cpu = instructions()
        reason = _objection(precision, found, speed_up, trained, cpu)
        if reason and not force:
            raise ExportError(f'{reason}. No file was written; take another precision, or keep it by force_precision=True '
                              f'(--force-precision). On {found.images} images ({source}): {found}.')
        sizes = {'fp32': path.stat().st_size}
        _write_metadata(smaller, {**metadata, 'precision': precision, 'drift': found.to_dict()})
        sizes[precision] = smaller.stat().st_size
        os.replace(smaller, path)
    finally:
        smaller.unlink(missing_ok=True)
    if not trained:
        notes.append('the weights are random: the drift says no more than that the file is sound')
    if precision == 'fp16' and speed_up and speed_up[0] < 1:
        notes.append('float16 is not faster here: it is for runtimes that have it')
    if reason:
        notes.append(f'kept by force: {reason}')
    return Quantisation(precision, found, sizes, latency, speed_up, cpu, reason)


def quantise_products(source: Path, target: Path) -> None:
    """Write `source` with its products in 8 bits, as 'int8' has them, unchecked. Raises ExportError if that cannot be done."""
    with _silent():
        _quantise_products(_load(source), target)


def count_nodes(path: Path) -> int:
    import onnx
    return len(onnx.load(path).graph.node)


def _run(session, x: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {'image': x}), strict=True))
    except Exception as e:  # its errors have no common base
        raise ExportError(f'ONNX Runtime cannot run the file: {e}') from e


def _time(session, other, x: np.ndarray, precision: str, rounds: int) -> tuple[tuple[float, float, float], dict[str, float]]:
    timings = take_turns({'fp32': lambda: _run(session, x), precision: lambda: _run(other, x)}, rounds=rounds)
    return timings.speed_up(precision, 'fp32'), {name: timings.median_ms(name) for name in timings.cpu}


def _objection(precision: str, found: Drift, speed_up: tuple[float, float, float] | None, trained: bool, cpu: str) -> str | None:
    """Why a file is not worth to be kept, in words, or None."""
    if beyond := found.beyond(trained):
        return f'the file in {precision} drifts too far from float32: {beyond}'
    if precision.startswith('int8') and speed_up and speed_up[0] <= 1:
        median, low, high = speed_up
        return f'the file in {precision} is not faster than float32: {median:.2f}x [{low:.2f}, {high:.2f}] on a CPU with {cpu}'
    return None


def _write_metadata(path: Path, metadata: dict) -> None:
    """In the place of what there is: the quantisers leave notes."""
    import onnx
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    path.write_bytes(proto.SerializeToString())


@contextmanager
def _silent():
    """Keep to ourselves what the quantisers remark, by root loggers too, and the handler that those would install."""
    root, handler, level = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except ExportError:
        raise
    except Exception as e:  # whatever their stages raise
        raise ExportError(f'the file could not be put into a smaller precision: {type(e).__name__}: {e}') from e
    finally:
        logging.disable(level)
        root.removeHandler(handler)


def _load(path: Path):
    import onnx
    proto = onnx.load(path)
    prop = proto.metadata_props.add()
    prop.key, prop.value = PREPARED
    return proto


def _write_dynamic(source: Path, target: Path, inputs: list[np.ndarray]) -> None:
    _quantise_products(_load(source), target)


def _quantise_products(proto, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    # ONNX Runtime takes scales by channel of a matrix alone
    worth = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2 and np.prod(tensor.dims) >= MIN_WEIGHT}
    others = [node.name for node in proto.graph.node if node.op_type in ('MatMul', 'Gemm') and node.input[1] not in worth]
    # weights symmetric and by channel, activations unsigned: what the instructions take
    quantize_dynamic(proto, target, op_types_to_quantize=['MatMul', 'Gemm'], nodes_to_exclude=others, per_channel=True,
                     weight_type=QuantType.QInt8)


def _write_static(source: Path, target: Path, inputs: list[np.ndarray]) -> None:
    """Convolutions, and the products that they feed, with ranges from images; other products as in 'int8', whose ranges of the moment cost
    less here than passing on 8 bits."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{'image': x} for x in inputs])

        def get_next(self):
            return next(self.feeds, None)

    proto = _load(source)
    if names := _by_images(proto.graph):
        quantize_static(proto, target, Reader(), nodes_to_quantize=names, op_types_to_quantize=['Conv', 'MatMul', *_MOVES],
                        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        extra_options={'OpTypesToExcludeOutputQuantization': ['MatMul']})  # sums go on in float32
        proto = _load(target)
    _quantise_products(proto, target)


_MOVES = ('Transpose', 'Reshape')  # what only moves values keeps their range


def _by_images(graph) -> list[str]:
    """Names of the nodes that have their ranges from images: convolutions, the products that take what one gives, and the moves between.

    Left out is a depthwise convolution whose result is used more than once: it is the stream of the residuals (a position encoding), and
    8 bits there cost accuracy in all that follows.
    """
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)

    names = []
    for node in graph.node:
        if node.op_type != 'Conv':
            continue
        moves, result = [], node.output[0]
        while len(users[result]) == 1 and users[result][0].op_type in _MOVES:
            moves.append(users[result][0].name)
            result = users[result][0].output[0]
        depthwise = len(weights.get(node.input[1], ())) == 4 and weights[node.input[1]][1] == 1
        if depthwise and len(users[result]) > 1:
            continue
        names.append(node.name)
        if len(users[result]) == 1 and (user := users[result][0]).op_type == 'MatMul' and len(weights.get(user.input[1], ())) == 2:
            names += [*moves, user.name]
    return names


def _write_half(source: Path, target: Path, inputs: list[np.ndarray]) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


_WRITERS = {'int8': _write_dynamic, 'int8-static': _write_static, 'fp16': _write_half}
