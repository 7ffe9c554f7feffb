"""Where the time of a forward goes: by module, by operator in PyTorch, and by operator in ONNX Runtime; with multiply-adds."""
import json
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from .counters import count_macs_by_module
from .latency import torch_threads
from .onnx_graph import CONV, KINDS, MATMUL, graph_macs

ATTENTION, OTHER = 'attention', 'other'
# what PyTorch calls the kernels that multiply and add
_TORCH_KINDS = {
    **dict.fromkeys(('mm', 'addmm', 'bmm', 'baddbmm', 'linear', 'mkl_linear', '_mkl_linear', 'mkldnn_linear', 'matmul'), MATMUL),
    **dict.fromkeys(('convolution', '_convolution', 'mkldnn_convolution', 'thnn_conv2d', '_slow_conv2d_forward', 'slow_conv3d',
                     'conv2d', '_conv_depthwise2d', 'slow_conv_transpose2d', 'slow_conv_dilated2d', 'cudnn_convolution',
                     '_nnpack_spatial_convolution', '_mkldnn_convolution'), CONV),
    **dict.fromkeys(('scaled_dot_product_attention', '_scaled_dot_product_flash_attention_for_cpu', '_scaled_dot_product_flash_attention',
                     '_scaled_dot_product_efficient_attention', '_scaled_dot_product_cudnn_attention'), ATTENTION),
}


@dataclass(frozen=True)
class Part:
    """A module, an operator, or a kind of operators: milliseconds of one forward, multiply-adds of it where these are known, calls."""
    name: str
    ms: float
    share: float
    macs: int | None = None
    calls: int = 1


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one forward goes.

    ms: of the whole; CPU time of one thread in 'modules', wall time else.
    modules: down to the depth asked for, in the order of the model, each with all that is inside; the first is the whole model.
    kinds: 'matrix product', 'convolution', 'attention', 'other', the longest first. operators: as the runtime calls them, the same.
    macs: of the whole, as `vitzoo.profile` counts them.
    """
    runtime: str
    ms: float
    macs: int
    modules: list[Part]
    kinds: list[Part]
    operators: list[Part]

    def to_dict(self) -> dict:
        return asdict(self)


class _Watch:
    """A hook before and after a module's forward, in turn."""
    only_looks = True  # the layer is still no more than its weight

    def __init__(self, name: str, spent: Counter):
        self.name, self.spent, self.start = name, spent, None

    def __call__(self, *args) -> None:
        now = time.thread_time()
        if self.start is None:
            self.start = now
        else:
            self.spent[self.name] += now - self.start
            self.start = None


def time_modules(modules: dict[str, nn.Module], call: Callable[[], object], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU time of the calling thread spent in each of the modules, one entry for each call of `call`, after one to warm up."""
    spent, handles = Counter(), []
    found = {name: [] for name in modules}
    try:
        for name, module in modules.items():
            watch = _Watch(name, spent)
            handles += [module.register_forward_pre_hook(watch), module.register_forward_hook(watch)]
        call()
        for _ in range(rounds):
            spent.clear()
            call()
            for name, seconds in found.items():
                seconds.append(spent[name])
    finally:
        for handle in handles:
            handle.remove()
    return found


def eager_breakdown(model: nn.Module, x: torch.Tensor, *, depth: int = 2, rounds: int = 5) -> Breakdown:
    """Of `model(x)` in PyTorch, on one thread; the model in eval mode. Modules that are called more than once are counted together."""
    macs = count_macs_by_module(model, x)
    modules = {name: m for name, m in model.named_modules() if name.count('.') < depth}
    with torch_threads(1), torch.inference_mode():
        seconds = time_modules(modules, lambda: model(x), rounds)
        operators = _torch_operators(lambda: model(x), rounds)
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    whole = ms['']
    parts = [Part(name or type(model).__name__, t, t / whole, macs.modules.get(name, 0)) for name, t in ms.items() if t > 0]
    return Breakdown('PyTorch', whole, macs.total, parts, *_tables(operators, _TORCH_KINDS, macs.kinds))


def _torch_operators(call: Callable[[], object], rounds: int) -> dict[str, tuple[float, float]]:
    """Name -> (milliseconds by itself, number of calls) in one call."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        for _ in range(rounds):
            call()
    return {event.key.removeprefix('aten::'): (event.self_cpu_time_total / 1e3 / rounds, event.count / rounds)
            for event in found.key_averages() if event.key.startswith('aten::')}


def onnx_breakdown(path: str | os.PathLike, x: torch.Tensor, *, rounds: int = 5) -> Breakdown:
    """Of an ONNX file with one input in ONNX Runtime, on one thread; `modules` is empty, since files know none.

    Raises ValueError where the multiply-adds cannot be told from the graph.
    """
    import onnxruntime
    macs = graph_macs(path, tuple(x.shape))
    with tempfile.TemporaryDirectory(prefix='vitzoo-') as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / 'x')
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=['CPUExecutionProvider'])
        feed = {session.get_inputs()[0].name: x.numpy()}
        for _ in range(1 + rounds):  # the first warms up
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding='utf-8'))
    nodes = defaultdict(list)
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
            nodes[event['name'], event['args']['op_name']].append(event['dur'] / 1e3)
    operators = defaultdict(lambda: (0., 0))
    for (_, kind), times in nodes.items():
        ms, calls = operators[kind]
        operators[kind] = ms + statistics.median(times[1:] or times), calls + max(1, len(times) // (1 + rounds))
    kinds, parts = _tables(operators, KINDS, macs)
    return Breakdown('ONNX Runtime', sum(part.ms for part in parts), sum(macs.values()), [], kinds, parts)


def _tables(operators: dict[str, tuple[float, float]], kind_of: dict[str, str], macs: dict[str, int]) -> tuple[list[Part], list[Part]]:
    whole = sum(ms for ms, _ in operators.values()) or 1.
    kinds = defaultdict(lambda: (0., 0))
    for name, (ms, calls) in operators.items():
        kind = kind_of.get(name, OTHER)
        kinds[kind] = kinds[kind][0] + ms, kinds[kind][1] + calls

    def parts(found, macs_of):
        return [Part(name, ms, ms / whole, macs_of(name), round(calls)) for name, (ms, calls) in
                sorted(found.items(), key=lambda item: -item[1][0]) if ms > 0]
    return parts(kinds, lambda kind: macs.get(kind, 0)), parts(operators, lambda name: None)


def split_network(model: nn.Module, call: Callable[[], object], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Backbone, neck, head and whole of a detector or segmentor -> milliseconds of CPU time on one thread, median, lowest and highest.

    The head is all that is neither backbone nor neck: proposals, boxes, what suppresses overlaps, masks.
    """
    parts = {name: module for name in ('backbone', 'neck') if isinstance(module := getattr(model, name, None), nn.Module)}
    if 'backbone' not in parts:
        raise ValueError(f'{type(model).__name__} has no backbone; expected a detector of MMDetection or a segmentor of MMSegmentation.')
    wholes = []

    def timed():
        start = time.thread_time()
        call()
        wholes.append(time.thread_time() - start)

    with torch_threads(1), torch.inference_mode():
        seconds = time_modules(parts, timed, rounds)
    wholes = wholes[1:]  # the first warmed up
    seconds['head'] = [whole - sum(times) for whole, *times in zip(wholes, *seconds.values(), strict=True)]
    return {name: _spread(times) for name, times in {**seconds, 'whole': wholes}.items()}


def _spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    return tuple(1e3 * f(seconds) for f in (statistics.median, min, max))
