"""Arguments are what signatures say."""
import functools
import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitzoo.arguments import as_type, check_types, show


@pytest.mark.parametrize('hint, value, expected', [
    (int, 3, 3), (int, np.int32(3), 3), (int, torch.tensor(3), 3), (int, -2 ** 63, -2 ** 63),
    (float, 3, 3.), (float, np.float32(0.5), 0.5), (float | None, None, None),
    (bool, True, True), (bool, np.False_, False), (bool, 1, True), (bool | str, 'layer', 'layer'), (bool | str, 0, False),
    (tuple[int, ...], [1, 2], (1, 2)), (tuple[int, ...], (), ()), (tuple[int, ...], torch.Size([4]), (4,)),
    (tuple[int | tuple[int, int], ...], [7, [1, np.int64(2)]], (7, (1, 2))), (Sequence[float | None], [None, 1], (None, 1.)),
    (int | tuple[int, int], 5, 5), (int | tuple[int, int], [5, 6], (5, 6)),
    (torch.device | None, 'cpu', torch.device('cpu')), (torch.dtype, 'float16', torch.float16), (torch.dtype, torch.double, torch.double),
    (str | os.PathLike, 'a', 'a'), (str | os.PathLike, Path('a'), Path('a')), (dict, {1: 2}, {1: 2}), (dict[str, int], {}, {}),
    (type[nn.Module], nn.Linear, nn.Linear),
], ids=str)
def test_fitting_values(hint, value, expected):
    found = as_type('option', value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize('hint, value, expected', [
    (int, 3., 'an integer'), (int, True, 'an integer'), (int, np.True_, 'an integer'), (int, '3', 'an integer'), (int, None, 'an integer'),
    (int, 2 ** 63, 'an integer'), (int, 10 ** 5000, 'an integer'), (int, torch.ones(2), 'an integer'), (int, np.array([3]), 'an integer'),
    (float, float('nan'), 'a number'), (float, float('inf'), 'a number'), (float, 3.4e38, 'a number'),
    (float, 1j, 'a number'), (float, True, 'a number'),
    (float, 10 ** 400, 'a number'), (float | None, '1', 'a number or None'), (bool, 2, 'True or False'), (bool, 1., 'True or False'),
    (bool | str, None, 'True or False or a string'), (str, b'a', 'a string'), (str | None, 1, 'a string or None'),
    (tuple[int, ...], 3, 'a list of integers'), (tuple[int, ...], [1, 1.5], 'a list of integers'), (tuple[int, ...], '12', 'a list'),
    (tuple[int, int], (1, 2, 3), 'a pair of integers'), (tuple[int, int, int], (1, 2), '3 integers'),
    (int | tuple[int, int], (1,), 'an integer or a pair of integers'),
    (tuple[int | tuple[int, int], ...], ((1, 2, 3),), 'a list of integers or pairs of integers'),
    (torch.device, 'gpu', 'a device'), (torch.dtype, torch.int64, 'torch.float16'), (torch.dtype, 'floaty', 'torch.float16'),
    (str | os.PathLike, 3, 'a string or a path'), (nn.Module, 'svit_micro', 'a torch.nn.Module'), (dict | None, [], 'a dict or None'),
], ids=lambda value: show(value))
def test_misfits(hint, value, expected):
    with pytest.raises(ValueError) as e:
        as_type('option', value, hint)
    text = str(e.value)
    assert text.startswith('option=') and f': expected {expected}' in text and '\n' not in text and len(text) < 300


def test_show_is_short_and_of_one_line():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    nested = [[[10 ** 30] * 6] * 6] * 6
    for value in (torch.ones(50, 50), 'x' * 1000, list(range(1000)), 10 ** 5000, Broken(), 'a\nb', {str(i): i for i in range(99)}, nested):
        assert '\n' not in show(value) and len(show(value)) <= 120


@check_types
def build(width: int, rate: float = 0., *, sizes: tuple[int, ...] = (1,), free=None, **others):
    return width, rate, sizes, free, others


def test_decorated_function_keeps_its_signature_and_pythons_own_errors():
    assert build(np.int64(2), 1, sizes=[3], free='any', more=nn.Linear) == (2, 1., (3,), 'any', {'more': nn.Linear})
    assert list(inspect.signature(build).parameters) == ['width', 'rate', 'sizes', 'free', 'others']
    with pytest.raises(ValueError, match='width=None: expected an integer.'):
        build(None)
    with pytest.raises(ValueError, match="rate='1': expected a number."):
        build(1, '1')
    for call in (build, functools.partial(build, 1, 2., (3,)), functools.partial(build, 1, width=1)):
        with pytest.raises(TypeError, match=r'build\(\)'):
            call()
