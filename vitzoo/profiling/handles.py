"""Handles that make fvcore count what `vitzoo.profile` counts, and how its own figure differs. fvcore is imported where it is used."""
import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..facts import float_dtype
from .counters import count_macs

# no multiplication of matrices: what fvcore counts by itself, and what it warns that it does not count
COUNTED = ('batch_norm', 'group_norm', 'instance_norm', 'layer_norm', 'adaptive_avg_pool2d', 'upsample_bilinear2d', 'upsample_nearest2d',
           'grid_sampler')
NOTHING = (
    'native_layer_norm', 'rms_norm', 'linalg_vector_norm', 'norm', 'adaptive_avg_pool1d', 'adaptive_max_pool2d', 'avg_pool2d',
    'max_pool2d', 'upsample_bicubic2d', 'im2col', 'col2im', 'log_softmax', 'softmax', 'sigmoid', 'sigmoid_', 'tanh', 'gelu', 'gelu_',
    'silu', 'silu_', 'hardswish', 'hardswish_', 'hardsigmoid', 'hardsigmoid_', 'relu', 'relu_', 'leaky_relu_', 'exp', 'log', 'sqrt',
    'rsqrt', 'pow', 'add', 'add_', 'sub', 'rsub', 'mul', 'mul_', 'div', 'div_', 'neg', 'abs', 'sum', 'mean', 'cumsum', 'max', 'min',
    'amax', 'clamp', 'clamp_', 'clamp_min', 'clamp_max', 'sort', 'argsort', 'topk', 'argmax', 'gather', 'index_select', 'index',
    'index_put_', 'scatter', 'scatter_', 'scatter_add', 'scatter_add_', 'masked_fill', 'masked_fill_', 'where', 'roll', 'pad', 'repeat',
    'stack', 'one_hot', 'full', 'full_like', 'fill_', 'zeros', 'zeros_like', 'ones', 'ones_like', 'new_zeros', 'new_full', 'bernoulli_',
    'copy_', 'addcmul', 'lerp', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'bitwise_not', 'bitwise_and', 'logical_not', 'floor_divide',
    'remainder', 'flip', 'unfold', 'sin', 'cos', 'square', 'dropout', 'unflatten', 'clone', 'repeat_interleave', 'prod', 'all', 'any',
    'std', 'var', 'lift_fresh', 'unbind', 'pixel_shuffle',
)
_VIEWS = ('aten::unsqueeze', 'aten::squeeze', 'aten::slice', 'aten::select', 'aten::index_select', 'aten::expand', 'aten::contiguous',
          'aten::view', 'aten::to', 'aten::reshape', 'aten::expand_as', 'aten::type_as')


def fvcore_handles() -> dict[str, Callable | None]:
    """Operator -> handle, for `fvcore.nn.FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles())`.

    The total is then that of `vitzoo.profile`: multiply-adds of matrix products, convolutions and attention, fused or not. By itself fvcore
    leaves out fused attention and some matrix products, and counts norms, adaptive pooling and resizing.
    """
    return {
        'aten::scaled_dot_product_attention': _attention,
        **dict.fromkeys(('aten::matmul', 'aten::mm', 'aten::bmm', 'aten::linear'), _product),
        **dict.fromkeys(('aten::addmm', 'aten::baddbmm'), _product_and_sum),
        **dict.fromkeys(('aten::conv1d', 'aten::conv2d', 'aten::conv3d', 'aten::_convolution_mode'), _convolution),
        **{f'aten::{name}': _nothing for name in COUNTED},  # None would leave fvcore's own handle in force
        **{f'aten::{name}': None for name in NOTHING},
    }


def _shape(value) -> list[int]:
    return value.type().sizes()


def _nothing(inputs: list, outputs: list) -> int:
    return 0


def _product(inputs: list, outputs: list) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _product_and_sum(inputs: list, outputs: list) -> int:
    return _product(inputs[1:], outputs)


def _convolution(inputs: list, outputs: list) -> int:
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _attention(inputs: list, outputs: list) -> int:
    q, k, v = map(_shape, inputs[:3])
    return round(math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]) * _share_of_keys(inputs[3]))


def _share_of_keys(mask) -> float:
    """1, but where a mask is scattered from a choice of keys, which a model masks to be faster than by leaving the others out: what part is
    chosen."""
    node = mask.node()
    while node.kind() in _VIEWS:
        node = node.inputsAt(0).node()
    if node.kind() != 'aten::scatter':
        return 1.
    every, chosen = (math.prod(_shape(node.inputsAt(i))) for i in (0, 2))
    return chosen / every


class FvcoreCount(NamedTuple):
    """macs: fvcore's own figure. attention: fused attention that it leaves out. other: what it counts beyond ours, such as norms, less what
    else it leaves out."""
    macs: int
    attention: int
    other: int


def fvcore_count(model: nn.Module, input_size: tuple[int, int, int]) -> FvcoreCount | None:
    """What fvcore by itself says of a model, and why it differs from `vitzoo.profile`; None where it is not installed, or cannot follow the
    model. The model is run: fvcore traces it."""
    if importlib.util.find_spec('fvcore') is None:
        return None
    from fvcore.nn import FlopCountAnalysis
    x = torch.zeros(1, *input_size, dtype=float_dtype(model))
    handles = fvcore_handles()
    attention = 'aten::scaled_dot_product_attention'
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            own = FlopCountAnalysis(model.eval(), x).set_op_handle(attention, handles[attention])  # counted apart
            own.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
            with_attention, attended = int(own.total()), int(own.by_operator()['scaled_dot_product_attention'])
    except Exception:  # whatever the tracer stumbles over
        return None
    return FvcoreCount(with_attention - attended, attended, with_attention - count_macs(model, x))
