"""Latency of many models in many runtimes, in turns in one process: what `vitzoo bench` and benchmarks/latency measure with."""
import csv
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import timm
import torch
from timm.utils import reparameterize_model

from vitzoo_runtime.files import MARK, replacing

from ..arguments import check_range
from ..export.quantise import PRECISIONS
from ..facts import image_shape
from .exports import Exports, build, to_int8
from .latency import take_turns
from .memory import peak_since, start_of_peak
from .modules import Breakdown, eager_breakdown, onnx_breakdown
from .onnx_graph import graph_macs
from .published import published
from .report import profile

RUNTIMES = {'eager': 'PyTorch', 'compiled': 'PyTorch, compiled', 'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}
OF_FILES = ('onnxruntime', 'openvino')
SIDE = 768  # of the matrices whose product is the measure of what the machine can do
_PEAK = 'matrix product'


@dataclass(frozen=True)
class Case:
    """What is to be measured.

    model: a registered name, ours or timm's, or the path of an ONNX file (`.onnx`).
    size: (H, W); None: the model's own.
    runtime: one of `RUNTIMES`. precision: 'fp32'; of files also 'int8', 'int8-static' and 'fp16', see `export_onnx`; in PyTorch
        'bf16'.
    reduce: how tokens are reduced, such as 'tome:r=8', or None.
    """
    model: str
    size: tuple[int, int] | None = None
    runtime: str = 'eager'
    precision: str = 'fp32'
    reduce: str | None = None

    @property
    def is_file(self) -> bool:
        return self.model.endswith('.onnx')

    @property
    def name(self) -> str:
        """Of the model, with how its tokens are reduced."""
        return (Path(self.model).stem if self.is_file else self.model) + (f' {self.reduce}' if self.reduce else '')

    @property
    def how(self) -> str:
        return RUNTIMES[self.runtime] + ('' if self.precision == 'fp32' else f' {self.precision}')

    def __str__(self) -> str:
        return ', '.join([self.name, *([] if self.size is None else [f'{self.size[0]}x{self.size[1]}']), self.how])


@dataclass
class Measured:
    """A case and what was found. What could not be had is None; why, is in `error`.

    ms: batch -> (median, lowest, highest) over the rounds, milliseconds of CPU time for an image, on one thread.
    share: batch -> share of what a matrix product of 768x768 in float32 reaches in the same round, median.
    macs: multiply-adds of an image; megabytes: moved for it in PyTorch at batch 1, see `vitzoo.profile`, with the case's bytes an element.
    peak_megabytes: by which the process grew at most while the model was loaded and ran once with the largest batch.
    file_megabytes: of the ONNX file.
    difference: of OpenVINO's outputs to ONNX Runtime's of the same file, as a share of the largest value; in float32, more than
        `export_onnx` allows between PyTorch and the file is an error.
    """
    case: Case
    ms: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    share: dict[int, float] = field(default_factory=dict)
    params: int | None = None
    macs: int | None = None
    megabytes: float | None = None
    peak_megabytes: float | None = None
    file_megabytes: float | None = None
    difference: float | None = None
    error: str | None = None

    def throughput(self, batch: int) -> float | None:
        """Images a second."""
        return 1e3 / self.ms[batch][0] if batch in self.ms else None

    @property
    def top1(self) -> float | None:
        """Published, of the model as it is: neither of its reduced forms nor at other sizes."""
        known = None if self.case.is_file or self.case.reduce else published(self.case.model)
        return known and known.top1

    def to_dict(self) -> dict:
        return {**asdict(self.case), 'name': self.case.name, **{k: v for k, v in asdict(self).items() if k != 'case'}, 'top1': self.top1}


def cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def bench(cases: Iterable[Case], *, batches: Sequence[int] = (1, 8), rounds: int = 5, min_seconds: float = 0.1,
          cache: str | Path | Exports | None = None, progress: Callable[[str], object] = lambda text: None) -> list[Measured]:
    """Measure all cases in turns (A B C A B C ...), each on one CPU thread, with a matrix product that says what the machine gives.

    Models of PyTorch are timed as `reparameterize_model` leaves them, with random weights; ONNX files are what `export_onnx` makes,
    and were compared with the model in float32. A case that fails on the way (it cannot be exported, say) is in the result with its error.

    Args:
        batches: latency is for an image, of a batch of so many.
        rounds: one figure each. min_seconds: a call is repeated within a round until about this long.
        cache: a folder for exported files, which the next run finds again; by default they are gone afterwards.
        progress: told what comes next, `steps(cases, batches, rounds)` times.

    Raises:
        ValueError: before any work: a name that is not registered, a file that is not there, a size that a model does not take, a precision
            or runtime that is not known or do not go together.
        ImportError: if a runtime is not installed.
    """
    check_range(1, 1000, rounds=rounds, batches=batches)
    cases = [_complete(case, batches) for case in cases]
    results = [_count(case) for case in cases]
    with ExitStack() as stack:
        folder = cache or stack.enter_context(tempfile.TemporaryDirectory(prefix='vitzoo-'))
        exports = folder if isinstance(folder, Exports) else Exports(folder)
        calls = {}
        for i, result in enumerate(results):
            progress(str(result.case))
            try:
                runtime = _open(result, exports, batches)
            except Exception as e:  # of whatever exporters, compilers and runtimes stumble over
                result.error = f'{type(e).__name__}: {" ".join(str(e).split())[:300]}'
                continue
            for batch in batches:
                calls[f'{i} {batch}'] = _call(runtime, result.case, batch)
        a = torch.randn(SIDE, SIDE)
        with torch.inference_mode():
            timings = take_turns({_PEAK: lambda: a @ a, **calls}, rounds=rounds, min_seconds=min_seconds,
                                 progress=lambda: progress('timing'))
    peak = timings.cpu[_PEAK]
    for i, result in enumerate(results):
        for batch in batches if f'{i} {batches[0]}' in calls else ():
            seconds = [s / batch for s in timings.cpu[f'{i} {batch}']]
            result.ms[batch] = tuple(1e3 * f(seconds) for f in (statistics.median, min, max))
            if result.macs is not None:
                result.share[batch] = statistics.median(result.macs / SIDE ** 3 * p / s for s, p in zip(seconds, peak, strict=True))
    return results


def steps(cases: Sequence[Case], batches: Sequence[int], rounds: int) -> int:
    """How often `bench` tells of its progress, if no case fails."""
    return len(cases) + (1 + len(cases) * len(batches)) * (1 + rounds)


def check_pair(runtime: str, precision: str) -> bool:
    """Whether a runtime takes models of this precision. Raises ValueError where one of them is not known."""
    if runtime not in RUNTIMES:
        raise ValueError(f'runtime {runtime!r}: expected {", ".join(RUNTIMES)}.')
    if precision not in (*PRECISIONS, 'bf16'):
        raise ValueError(f'precision {precision!r}: expected {", ".join(PRECISIONS)} or bf16.')
    return precision in (PRECISIONS if runtime in OF_FILES else ('fp32', 'bf16'))


def _complete(case: Case, batches: Sequence[int]) -> Case:
    """The case with its size. Raises what `bench` raises."""
    from ..export.runtimes import check_names
    from ..extras import require
    if not check_pair(case.runtime, case.precision):
        raise ValueError(f'precision {case.precision!r} does not go with {RUNTIMES[case.runtime]}: int8 and fp16 are for files, bf16 for '
                         'PyTorch.')
    if case.runtime in OF_FILES:
        for module in ('onnx', 'onnxscript', 'onnxruntime'):
            require(module, 'onnx')
        check_names([case.runtime])
    return _complete_file(case, batches) if case.is_file else _complete_name(case)


def _complete_name(case: Case) -> Case:
    import vitzoo  # noqa: F401  (registers our models)
    bare = case.model.partition('.')[0]
    if not timm.is_model(bare):
        close = get_close_matches(bare, timm.list_models(), n=3)
        raise ValueError(f'unknown model {case.model!r}' + (f'; did you mean {", ".join(close)}?' if close else ''))
    try:
        config = timm.get_pretrained_cfg(case.model)
    except RuntimeError as e:
        raise ValueError(f'{case.model!r}: {bare} has no such tag.') from e
    size = case.size or tuple(config.input_size[1:])
    return Case(case.model, tuple(size), case.runtime, case.precision, case.reduce)


def _complete_file(case: Case, batches: Sequence[int]) -> Case:
    from ..export.verify import ExportError, open_session
    if case.runtime not in OF_FILES:
        raise ValueError(f'{case.model} is an ONNX file: expected the runtimes onnxruntime or openvino, not {case.runtime}.')
    if case.precision not in ('fp32', 'int8'):
        raise ValueError(f'{case.model} is an ONNX file: expected the precision int8, or fp32, which leaves it as it is.')
    if case.reduce:
        raise ValueError(f'{case.model} is an ONNX file: its tokens cannot be reduced; name the model.')
    if not Path(case.model).is_file():
        raise ValueError(f'{case.model}: no such file.')
    try:
        inputs = open_session(case.model).get_inputs()
    except ExportError as e:
        raise ValueError(f'{case.model}: {e}') from e
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4:
        raise ValueError(f'{case.model}: expected one input (B, C, H, W), it has {[(i.name, i.shape) for i in inputs]}.')
    if isinstance(shape[0], int) and any(batch != shape[0] for batch in batches):
        raise ValueError(f'{case.model} takes a batch of {shape[0]} alone: expected --batches {shape[0]}.')
    own = tuple(shape[2:]) if all(isinstance(n, int) for n in shape[2:]) else None
    if own and case.size and own != tuple(case.size):
        raise ValueError(f'{case.model} takes images of {own[0]}x{own[1]} alone, not {case.size[0]}x{case.size[1]}.')
    size = own or case.size
    if size is None:
        raise ValueError(f'{case.model} takes images of any size: say which by size (H, W).')
    return Case(case.model, tuple(size), case.runtime, case.precision)


def _count(case: Case) -> Measured:
    """What is known without running: a model is built without memory. Raises ValueError where it does not take the size."""
    result = Measured(case)
    if case.is_file:
        result.macs = _file_macs(case)
        return result
    with torch.device('meta'):
        model = build(case.model, case.size, case.reduce)
        params = sum(p.numel() for p in model.parameters())
        model = reparameterize_model(model)  # what is run
    cost = profile(model, case.size, batch=1, element_bytes=2 if case.precision == 'bf16' else 4)
    result.params, result.macs, result.megabytes = params, cost.macs, cost.bytes_moved / 1e6
    return result


def _file_macs(case: Case) -> int | None:
    try:
        return sum(graph_macs(case.model, (1, 3, *case.size)).values())
    except ValueError:  # loops, or shapes that depend on what is in the image
        return None


def _open(result: Measured, exports: Exports, batches: Sequence[int]):
    """The runtime, ready to be called, with what it takes of memory in `result`."""
    from ..export.runtimes import PyTorch, compare_runtimes, open_file
    case = result.case
    if case.runtime in OF_FILES:
        path = _file(case, exports, dynamic_batch=any(batch != 1 for batch in batches))
        result.file_megabytes = path.stat().st_size / 1e6
    else:
        path = None
    if case.runtime == 'openvino':
        result.difference = compare_runtimes(path, case.runtime, (_channels(path), *case.size), strict=case.precision == 'fp32')
    before = start_of_peak()
    if path is not None:
        runtime = open_file(path, case.runtime)
    else:
        dtype = torch.bfloat16 if case.precision == 'bf16' else torch.float32
        model = reparameterize_model(build(case.model, case.size, case.reduce)).eval().to(dtype)
        runtime = PyTorch(torch.compile(model) if case.runtime == 'compiled' else model, dtype)
    _call(runtime, case, max(batches))()
    result.peak_megabytes = peak_since(before)
    return runtime


def _file(case: Case, exports: Exports, dynamic_batch: bool) -> Path:
    if not case.is_file:
        return exports.get(case.model, case.size, reduce=case.reduce, precision=case.precision, dynamic_batch=dynamic_batch)
    if case.precision == 'fp32':  # or whatever it is in
        return Path(case.model)
    target = exports.folder / f'{Path(case.model).stem}-int8.onnx'
    to_int8(Path(case.model), target)
    return target


def _call(runtime, case: Case, batch: int) -> Callable[[], object]:
    if case.runtime in OF_FILES:
        first, names = runtime.get_inputs()[0], [output.name for output in runtime.get_outputs()]
        name, channels = first.name, first.shape[1]
    else:
        name, names, channels = 'image', [], image_shape(runtime.model, case.size)[0]
    feed = {name: np.random.default_rng(0).standard_normal((batch, channels, *case.size)).astype(np.float32)}
    return lambda: runtime.run(names, feed)


CSV = ('model', 'reduce', 'height', 'width', 'runtime', 'precision', 'batch', 'ms', 'lowest', 'highest', 'images_per_second', 'share',
       'params', 'macs', 'megabytes_moved', 'peak_megabytes', 'file_megabytes', 'top1', 'cpu', 'error')


def write_csv(found: Iterable[Measured], path: str | Path) -> None:
    """A row for each case and batch; a case that failed has one, with its error."""
    rows = []
    for result in found:
        case = result.case
        fixed = dict(model=case.model, reduce=case.reduce, height=case.size[0], width=case.size[1], runtime=case.runtime,
                     precision=case.precision, params=result.params, macs=result.macs, megabytes_moved=result.megabytes,
                     peak_megabytes=result.peak_megabytes, file_megabytes=result.file_megabytes, top1=result.top1, cpu=cpu_name(),
                     error=result.error)
        rows += [{**fixed, 'batch': batch, **dict(zip(('ms', 'lowest', 'highest'), ms, strict=True)),
                  'images_per_second': result.throughput(batch), 'share': result.share.get(batch)} for batch, ms in result.ms.items()] \
            or [fixed]
    with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
        file.write(f'# {MARK}\n')
        writer = csv.DictWriter(file, CSV, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def draw(found: Iterable[Measured], path: str | Path) -> Path:
    """Published accuracy, and multiply-adds, against latency at the smallest batch: a panel for each size and way to run; a PNG.

    Raises ValueError if nothing was measured; ImportError without matplotlib (extra `viz`).
    """
    from ..viz.pareto import Point, draw_pareto
    panels = {}
    for result in found:
        if not result.ms:
            continue
        ms, low, high = result.ms[min(result.ms)]
        size = 'x'.join(map(str, result.case.size))
        for quality, title in ((result.top1, 'top-1, %'), (result.macs and result.macs / 1e9, 'GMACs')):
            if quality is not None:
                points, _ = panels.setdefault((f'{title} at {size}', f'ms an image, {result.case.how}'), ([], None))
                points.append(Point(result.case.name, ms, quality, quality, quality))
    return draw_pareto(panels, path)


@dataclass(frozen=True)
class Profiled:
    """Where the time of a case goes, in each runtime; `notes` say what could not be told."""
    case: Case
    macs: int | None
    breakdowns: list[Breakdown]
    notes: list[str]


def profile_case(case: Case, *, batch: int = 1, depth: int = 2, rounds: int = 5, export: bool = True, cache: str | Path | None = None,
                 progress: Callable[[str], object] = lambda text: None) -> Profiled:
    """Where the time goes: of a model by name in PyTorch and, with `export`, in its ONNX file; of a file in ONNX Runtime.

    Raises ValueError and ImportError as `bench`.
    """
    from ..export import ExportError
    counted = _count(_complete(case, (batch,)))
    case, breakdowns, notes = counted.case, [], []
    with ExitStack() as stack:
        folder = cache or stack.enter_context(tempfile.TemporaryDirectory(prefix='vitzoo-'))
        if not case.is_file:
            model = reparameterize_model(build(case.model, case.size, case.reduce)).eval()
            breakdowns.append(eager_breakdown(model, torch.randn(batch, *image_shape(model, case.size)), depth=depth, rounds=rounds))
        progress('ONNX Runtime')
        if export or case.is_file:
            try:
                path = _file(case, Exports(folder), dynamic_batch=batch != 1)
                breakdowns.append(onnx_breakdown(path, torch.randn(batch, _channels(path), *case.size), rounds=rounds))
            except (ValueError, ExportError) as e:
                notes.append(f'no times of the file: {e}')
        progress('done')
    return Profiled(case, counted.macs, breakdowns, notes)


def _channels(path: Path) -> int:
    from ..export.verify import open_session
    return open_session(str(path)).get_inputs()[0].shape[1]
