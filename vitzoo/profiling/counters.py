"""What one forward pass costs, counted operator by operator: multiply-adds, memory traffic, activations. No device is timed here."""
import copy
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten

# operators that only allocate or rename memory; views are recognised by themselves
_FREE = {aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default, aten.detach.default, aten.lift_fresh.default}
_MATMUL = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


def _cpu_attention_flops(q: tuple, k: tuple, v: tuple, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of the CPU's fused attention, which torch's counter does not know; shapes (B, heads, tokens, channels)."""
    batch, heads, queries, dim = q
    return 2 * batch * heads * queries * k[2] * (dim + v[3])


@torch.no_grad()
def count_macs(model: Callable[[Tensor], object], x: Tensor) -> int:
    """Multiply-adds of one `model(x)`: matrix products, convolutions and attention, on any device and with fused attention on or off.

    Norms, activations, pooling, gathers and elementwise operators count nothing. Nor do products that a model makes beyond need: modules
    that attend to some keys by masking the others, where that is faster, have a limit `max_masked`, which is 0 for the count.
    """
    return _count(model, x).get_total_flops() // 2


class Macs(NamedTuple):
    """Multiply-adds of one forward: of all, by module (with what is inside; the model itself is ''), and by kind of operator
    ('matrix product', 'convolution', 'attention')."""
    total: int
    modules: dict[str, int]
    kinds: dict[str, int]


@torch.no_grad()
def count_macs_by_module(model: nn.Module, x: Tensor) -> Macs:
    """`count_macs`, in parts. On the meta device fused attention counts as the two matrix products that it is made of there."""
    counter = _count(model, x)
    whole, counts = type(model).__name__, counter.get_flop_counts()
    modules = {name.removeprefix(whole).removeprefix('.'): sum(ops.values()) // 2 for name, ops in counts.items() if name != 'Global'}
    kinds = Counter()
    for op, flops in counts.get('Global', {}).items():
        name = op.__name__ if hasattr(op, '__name__') else str(op).rpartition('.')[2]
        kinds['convolution' if 'conv' in name else 'attention' if 'attention' in name else 'matrix product'] += flops // 2
    return Macs(counter.get_total_flops() // 2, modules, dict(kinds))


def _count(model: Callable[[Tensor], object], x: Tensor) -> FlopCounterMode:
    attention = {aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter, _no_fast_path(), _no_masking(model):
        model(x)
    return counter


@dataclass
class Traffic:
    """Totals of one forward pass.

    operators: dispatched operators that move data; views and allocations are free, fused attention is one.
    bytes: every operator's inputs read once plus its outputs written once; an expanded view costs its storage.
    activations: elements written by convolutions, matrix products and fused attention (attention that is spelled out by hand writes its
        scores as well).
    """
    operators: int = 0
    bytes: int = 0
    activations: int = 0


class _CountOperators(TorchDispatchMode):
    def __init__(self, element_bytes: int):
        super().__init__()
        self.element_bytes = element_bytes
        self.total = Traffic()

    def add(self, inputs, outputs, heavy: bool) -> None:
        self.total.operators += 1
        self.total.bytes += sum(self.size(t) for t in tree_leaves((inputs, outputs)) if isinstance(t, Tensor))
        if heavy:
            self.total.activations += sum(t.numel() for t in tree_leaves(outputs) if isinstance(t, Tensor))

    def size(self, t: Tensor) -> int:
        elements = min(t.numel(), t.untyped_storage().nbytes() // t.itemsize)
        return elements * (self.element_bytes if t.is_floating_point() else t.itemsize)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in _FREE:
            self.add((args, kwargs), out, func.overloadpacket in _MATMUL or func is aten.convolution.default)
        return out


@contextmanager
def _attention_as_one(counter: _CountOperators):
    """Count scaled_dot_product_attention before it is decomposed, as the fused kernel that it is on real devices."""
    fused = F.scaled_dot_product_attention

    def counted(query, key, value, attn_mask=None, *args, **kwargs):
        if query.device.type != 'meta':  # another thread's, at work
            return fused(query, key, value, attn_mask, *args, **kwargs)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        counter.add((query, key, value, attn_mask), out, heavy=True)
        return out

    F.scaled_dot_product_attention = counted
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


@contextmanager
def _no_fast_path():
    """nn.MultiheadAttention and nn.TransformerEncoder skip to one opaque operator in eval mode; keep them from it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_masking(model: Callable):
    """Let attention that may mask keys leave them out instead."""
    masking = [m for m in model.modules() if hasattr(m, 'max_masked')] if isinstance(model, nn.Module) else []
    before = [m.max_masked for m in masking]
    try:
        for module in masking:
            module.max_masked = 0
        yield
    finally:
        for module, limit in zip(masking, before, strict=True):
            module.max_masked = limit


@torch.no_grad()
def count_traffic(model: Callable[[Tensor], object], x: Tensor, element_bytes: int = 2) -> Traffic:
    """Operators, bytes and activations of one `model(x)`, floating-point elements at `element_bytes` each.

    Model and `x` belong on the meta device (`on_meta`): attention is not computed here. A forward before it makes what models keep from
    one to the next (tables of a size).
    """
    model(x)
    counter = _CountOperators(element_bytes)
    with counter, _attention_as_one(counter), _no_fast_path():
        model(x)
    return counter.total


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode whose parameters and buffers have shapes but no memory."""
    stand_ins = {id(b): b.to('meta') for b in model.buffers()}
    for p in model.parameters():
        stand_ins[id(p)] = nn.Parameter(p.detach().to('meta'), requires_grad=p.requires_grad)
    return copy.deepcopy(model, stand_ins).eval()
