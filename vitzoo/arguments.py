"""Arguments are what the signature says: one check of types for all constructors and functions that users call. Uses nothing of ours."""
import inspect
import operator
import os
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Real
from reprlib import Repr
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

MOST_PIXELS = 2 ** 16  # of an image, along one side
LARGEST = 1e38  # number that float32 and bfloat16 hold
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAMES = {  # of a type in messages: one, several
    int: ('an integer', 'integers'), float: ('a number', 'numbers'), bool: ('True or False', 'booleans'), str: ('a string', 'strings'),
    dict: ('a dict', 'dicts'), type: ('a class', 'classes'), NoneType: ('None', 'None'), os.PathLike: ('a path', 'paths'),
    nn.Module: ('a torch.nn.Module, e.g. from timm.create_model', 'modules'),
    torch.device: ("a device that is here, such as 'cpu'", 'devices'),
    torch.dtype: ('torch.float16, bfloat16, float32 or float64', 'dtypes'),
}
_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def show(value) -> str:
    """The value in one line of a message, whatever it is."""
    try:
        text = ' '.join(_short.repr(value).split())
        return text if len(text) <= 120 else f'{text[:117]}...'
    except Exception:  # a repr that fails, an integer of more digits than Python prints
        return f'a {type(value).__name__}'


def check_range(least: float, most: float, **numbers: float | Sequence[float]) -> None:
    """Raise ValueError unless each number, or each entry of a sequence, lies in the range, ends included."""
    for name, value in numbers.items():
        if not all(least <= n <= most for n in (value if isinstance(value, Sequence) else (value,))):
            raise ValueError(f'{name}={show(value)}: expected {least} to {most}.')


class _Misfit(Exception):
    """A value is not what an annotation says."""


def check_types(function: Callable) -> Callable:
    """Decorate a function: it gets each argument as what its annotation says, or raises a ValueError that names the argument.

    What behaves as an integer becomes one (numpy's), what counts as a number a float, and a list a tuple; 0 and 1 are no more than flags
    where flags are meant, flags are no numbers, and numbers are finite, in float32 too. Arguments without an annotation, and those behind
    `**`, pass.
    """
    hints = get_type_hints(function)
    kinds = {name: p.kind for name, p in inspect.signature(function).parameters.items()}
    hints = {name: hints[name] for name, kind in kinds.items() if name in hints and kind is not inspect.Parameter.VAR_KEYWORD}

    def take(name, value):
        return as_type(name, value, hints[name]) if name in hints else value

    @wraps(function)
    def checked(*args, **kwargs):
        positional = [take(name, value) for name, value in zip(kinds, args, strict=False)]
        kwargs = {name: take(name, value) for name, value in kwargs.items()}
        return function(*positional, *args[len(positional):], **kwargs)  # Python itself says what is missing or unknown
    return checked


def as_type(name: str, value, hint):
    """The value as what the annotation `hint` says. Raises ValueError where it is something else."""
    try:
        return _fit(value, hint)
    except _Misfit:
        raise ValueError(f'{name}={show(value)}: expected {_describe(hint)}.') from None


def _fit(value, hint):
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _fit_one_of(value, parts)
    if kind in (tuple, list, Sequence):
        values = _fit_sequence(value, parts, fixed=kind is tuple and Ellipsis not in parts)
        return list(values) if kind is list else values
    if kind in _CONVERT:
        return _CONVERT[kind](value)
    if isinstance(kind, type) and not isinstance(value, kind):
        raise _Misfit
    return value


def _fit_one_of(value, hints: tuple):
    for hint in hints:
        try:
            return _fit(value, hint)
        except _Misfit:
            continue
    raise _Misfit


def _fit_sequence(value, hints: tuple, fixed: bool) -> tuple:
    if not isinstance(value, (tuple, list)) or fixed and len(value) != len(hints):
        raise _Misfit
    return tuple(_fit(v, hints[i] if fixed else hints[0]) for i, v in enumerate(value))


def _fit_int(value) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise _Misfit
    try:
        value = operator.index(value)
    except Exception:  # whatever the value's own conversion raises
        raise _Misfit from None
    if not -2 ** 63 <= value < 2 ** 63:
        raise _Misfit
    return value


def _fit_float(value) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _Misfit
    try:
        value = float(value)
    except OverflowError:
        raise _Misfit from None
    if not abs(value) <= LARGEST:  # nor is it NaN
        raise _Misfit
    return value


def _fit_bool(value) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    value = _fit_int(value)
    if value not in (0, 1):
        raise _Misfit
    return bool(value)


def _fit_device(value) -> torch.device:
    try:
        device = torch.device(value)
        torch.empty(0, device=device)  # is there such a device?
    except Exception:  # among them what a number too large for C raises, and a missing driver
        raise _Misfit from None
    return device


def _fit_dtype(value) -> torch.dtype:
    value = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(value, torch.dtype) or value not in DTYPES:
        raise _Misfit
    return value


_CONVERT = {int: _fit_int, float: _fit_float, bool: _fit_bool, torch.device: _fit_device, torch.dtype: _fit_dtype}


def _describe(hint, several: bool = False) -> str:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return ' or '.join(dict.fromkeys(_describe(part, several) for part in parts))
    if kind in (tuple, list, Sequence):
        fixed = kind is tuple and Ellipsis not in parts
        what = _describe(parts[0], several=True)
        return (f'{"pairs" if several else "a pair"} of {what}' if fixed and len(parts) == 2 else f'{len(parts)} {what}' if fixed else
                f'{"lists" if several else "a list"} of {what}')
    if kind in _NAMES:
        return _NAMES[kind][several]
    return f'a {kind.__name__}'
