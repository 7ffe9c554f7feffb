"""Whatever comes as an option, an index or an image: it works, or a ValueError says in one line which argument is wrong, and what was expected.

Options are those of the constructors' signatures, so that a new model's are covered by themselves.
"""
import functools
import inspect

import numpy as np
import pytest
import timm
import torch
import zoo

from vitzoo.layers import show

micro_model = pytest.mark.parametrize('name', zoo.MICRO)
first_model = pytest.mark.parametrize('name', zoo.FIRST.values())

HUGE = (10 ** 9, 2 ** 31, 2 ** 63, 10 ** 30, 10 ** 5000)
NUMBERS = (True, -1, 0, 2, -0.5, 0.5, 1.5, 1e30, float('nan'), float('inf'), -float('inf'), 3 + 1j, *HUGE)
NUMPY = (np.int64(2), np.float32(0.5), np.float32('nan'), np.True_, np.ones(4), np.array('a'), torch.ones(4), torch.tensor(1.5))
OTHERS = (None, '', 'no_such', '2', 'a\nb', 'x' * 10 ** 5, b'2', object(), int, len, set(), {}, {1: 2}, [], (), [2], (2, 2), [[1, 1], [1, 1]])
FOURS = tuple((v,) * 4 for v in (None, True, -1, 0, 1.5, float('nan'), float('inf'), 'a', (2, 2, 2), ([1],), *HUGE))
VALUES = NUMBERS + NUMPY + OTHERS + FOURS


@functools.cache
def model_class(name):
    return type(on_meta(name))


def on_meta(name, **options):
    with torch.device('meta'):
        return timm.create_model(name, **options).eval()


def arguments(function):
    return [p.name for p in inspect.signature(function).parameters.values() if p.name != 'self' and p.kind is not p.VAR_KEYWORD]


def complaint(call, name):
    """What is wrong with a call that has this value for this argument; None if it works or is refused as it ought to be."""
    try:
        call()
    except ValueError as e:
        text = str(e)
        if '\n' in text or len(text) > 400:
            return f'long message: {text[:200]}'
        if name not in text or 'xpected' not in text:
            return f'says little: {text}'
    except Exception as e:
        return f'{type(e).__name__}: {str(e)[:200]}'
    return None


def complaints(call, name, values=VALUES):
    """Of all values, by their beginnings."""
    found = {show(v): complaint(lambda v=v: call(v), name) for v in values}
    return {value: text for value, text in found.items() if text}


@micro_model
def test_constructor(name):
    """By timm's way and directly, where None is a value too; what is built runs."""
    def build_and_run(option, value):
        model = on_meta(name, **{option: value})
        size = [max(64, n) for n in model.pretrained_cfg.get('min_input_size', (3, 1, 1))[1:]]
        weight = next(model.parameters())
        try:
            model(torch.empty(1, model.in_chans, *size, device=weight.device, dtype=weight.dtype))
        except ValueError as e:
            assert 'Image of' in str(e)

    bad = {}
    for option in arguments(model_class(name).__init__):
        bad[option] = complaints(functools.partial(build_and_run, option), option)
        bad[option] |= complaints(lambda value, option=option: model_class(name)(**{option: value}), option, [None])
    assert {option: found for option, found in bad.items() if found} == {}
