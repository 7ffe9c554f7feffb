"""What follows what in a model of anybody, seen in one forward pass: the norms and layer scales that a layer before them can take in."""
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..layers.fold import BATCH_NORMS, LAYER_SCALES, LAYERS
from ..layers.plain import is_bare


@dataclass(eq=False)
class _Answer:
    """What a layer gave, and how often it was read, by any operator and by the module behind it."""
    layer: nn.Module
    reads: int = 0
    reader: nn.Module | None = None
    reads_before: int = 0
    reads_by_reader: int = 0


@dataclass
class Watched:
    """What was seen in a forward pass.

    pairs: layer -> the batch norm or layer scale that alone reads what the layer gives.
    inputs: module -> shape of the last image that it was called with.
    idle: modules with weights of which none was read, and which were not called; the outermost ones.
    outputs: what the model returned.
    """
    pairs: dict[nn.Module, nn.Module] = field(default_factory=dict)
    inputs: dict[nn.Module, torch.Size] = field(default_factory=dict)
    idle: list[nn.Module] = field(default_factory=list)
    outputs: object = None


class _Reads(TorchDispatchMode):
    """Counts who reads the tensors in `answers`, and notes which weights are read."""

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.unread = {id(tensor) for tensor in weights}
        self.answers = WeakTensorKeyDictionary()  # keeps no map alive: what is gone will not be read again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count((args, kwargs))
        return out

    def count(self, tree: object) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                self.unread.discard(id(tensor))
                if tensor in self.answers:
                    self.answers[tensor].reads += 1


@torch.no_grad()
def watch(model: nn.Module, images: Tensor) -> Watched:
    """Call a model once. Its hooks run as ever; a layer called twice, or whose result is read elsewhere too, is in no pair."""
    weights = {module: [*module._parameters.values(), *module._buffers.values()] for module in model.modules()}
    reads = _Reads(tensor for tensors in weights.values() for tensor in tensors if tensor is not None)
    calls, seen, watched = Counter(), [], Watched()

    def before_any(module, args):
        calls[module] += 1
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            watched.inputs[module] = args[0].shape

    def after_layer(layer, args, out):
        if isinstance(out, Tensor):
            seen.append(_Answer(layer))
            reads.answers[out] = seen[-1]

    def before_reader(reader, args):
        answer = reads.answers.get(args[0]) if len(args) == 1 and isinstance(args[0], Tensor) else None
        if answer is not None and answer.reader is None and _fits(answer.layer, reader, args[0]):
            answer.reader, answer.reads_before = reader, answer.reads

    def after_reader(reader, args, out):
        answer = reads.answers.get(args[0]) if len(args) == 1 and isinstance(args[0], Tensor) else None
        if answer is not None and answer.reader is reader:
            answer.reads_by_reader = answer.reads - answer.reads_before

    handles = []
    for module in weights:
        bare = is_bare(module)  # asked before it has hooks of ours
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(before_any))
        if bare and type(module) in LAYERS:
            handles.append(module.register_forward_hook(after_layer))
        elif bare and type(module) in (*BATCH_NORMS, *LAYER_SCALES):
            handles += module.register_forward_pre_hook(before_reader), module.register_forward_hook(after_reader)
    try:
        with reads:
            watched.outputs = model(images)
        reads.count(watched.outputs)
    finally:
        for handle in handles:
            handle.remove()
    for answer in seen:
        alone = answer.reader is not None and answer.reads_before == 0 and answer.reads == answer.reads_by_reader
        if alone and calls[answer.layer] == calls[answer.reader] == 1:
            watched.pairs[answer.layer] = answer.reader
    watched.idle = _idle(model, calls, {module for module, tensors in weights.items() if any(
        tensor is not None and id(tensor) not in reads.unread for tensor in tensors)})
    return watched


def _idle(model: nn.Module, calls: Counter, read: set[nn.Module]) -> list[nn.Module]:
    """The outermost modules with weights that took no part, nor did any module within."""
    idle, rest = [], [model]
    while rest:
        module = rest.pop()
        inner = set(module.modules())
        if not inner.isdisjoint(read) or any(calls[m] for m in inner):
            rest += module.children()
        elif next(module.parameters(), None) is not None:
            idle.append(module)
    return idle


def _fits(layer: nn.Module, reader: nn.Module, x: Tensor) -> bool:
    """Whether the channels that a layer gives are those that the reader scales."""
    if isinstance(layer, nn.Linear):
        return isinstance(reader, LayerScale) or isinstance(reader, nn.BatchNorm1d) and x.ndim == 2
    return x.ndim == 4 and not isinstance(reader, (LayerScale, nn.BatchNorm1d))
