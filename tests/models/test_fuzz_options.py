"""Options and images drawn at random, in combinations: a model that is built takes images, or a ValueError of one line says why not.

The strategies follow the annotations of the constructors, so that a new model's options are covered by themselves.
"""
import math
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import timm
import torch
import zoo

hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

INTEGERS = st.integers(-100, 100) | st.integers(min_value=2 ** 25) | st.integers(max_value=-2 ** 25)  # between them lie models of many GiB
JUNK = st.one_of(
    st.none(), st.booleans(), INTEGERS, st.floats(), st.complex_numbers(), st.text(max_size=20), st.binary(max_size=20),
    st.sampled_from([
        10 ** 5000, 2 ** 63, np.float32('nan'), np.ones(3), np.array('a'), torch.ones(2), torch.tensor(2.5), object(), len, int]),
    st.recursive(INTEGERS | st.none() | st.floats(), lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.sets(st.integers(), max_size=3),
)
SMALL = st.sampled_from([1, 2, 3, 4, 7, 8, 16, 32, 64, np.int64(8), torch.tensor(4)]) | st.integers(-2, 40)
WORDS = st.sampled_from(['', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'patch', 'conv', 'both', 'compressed', 'auto', 'dense',
                         'classifier', 'published', 'correct', 'none'])


def values(hint):
    """Small values of an annotated type."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return st.one_of(*map(values, parts))
    if kind in (tuple, list, Sequence):
        if kind is tuple and Ellipsis not in parts:
            return st.tuples(*map(values, parts))
        return st.lists(values(parts[0]), min_size=1, max_size=5)
    return {int: SMALL, float: st.floats(0, 1) | st.floats(), bool: st.booleans(), str: WORDS, NoneType: st.none(),
            torch.device: st.sampled_from(['cpu', 'meta', torch.device('cpu')]),
            torch.dtype: st.sampled_from([torch.float32, torch.float64, 'bfloat16', torch.int8])}[kind]


def drawn_options(model_cls):
    """A few options, each of its type, or anything at all."""
    hints = {name: hint for name, hint in get_type_hints(model_cls.__init__).items() if name != 'return'}
    one = st.sampled_from(sorted(hints)).flatmap(lambda name: st.tuples(st.just(name), values(hints[name]) | values(hints[name]) | JUNK))
    return st.lists(one, min_size=1, max_size=4).map(dict)


def check(call):
    """The value, or None where a ValueError of one line came."""
    try:
        return call()
    except ValueError as e:
        assert '\n' not in str(e) and 10 < len(str(e)) < 500, str(e)


def several(quick, slow):
    """The number of examples: few in `make test`, many in `make test-all`."""
    options = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    return [pytest.param(settings(max_examples=quick, **options), id='quick'),
            pytest.param(settings(max_examples=slow, **options), id='slow', marks=pytest.mark.slow)]


@pytest.mark.parametrize('how', several(quick=40, slow=2000))
@pytest.mark.parametrize('name', zoo.MICRO)
def test_options(name, how):
    model_cls = type(timm.create_model(name))

    @how
    @given(drawn_options(model_cls))
    def build(options):
        model = check(lambda: timm.create_model(name, **options))
        if model is None:
            return
        weight = next(model.parameters())
        size = [max(40, n) for n in model.pretrained_cfg.get('min_input_size', (3, 1, 1))[1:]]
        with torch.no_grad():
            logits = check(lambda: model.eval()(torch.ones(1, model.in_chans, *size, device=weight.device, dtype=weight.dtype)))
        if logits is not None and model.num_classes and logits.ndim == 2:
            assert logits.shape == (1, model.num_classes)
    build()


@st.composite
def images(draw):
    """Tensors of any rank, precision and layout, and what is none."""
    if draw(st.integers(0, 4)) == 0:
        return draw(JUNK)
    shape = draw(st.lists(st.integers(0, 5), max_size=5) | st.tuples(
        st.integers(0, 2), st.sampled_from([3, 3, 3, 1, 64]), st.integers(0, 70), st.integers(0, 70)))
    others = [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool, torch.cfloat]
    dtype = draw(st.just(torch.float32) | st.sampled_from(others))
    image = torch.ones(tuple(shape), dtype=dtype)
    if math.prod(shape) and draw(st.integers(0, 9)) == 0:
        image = image.to_sparse()
    if image.ndim == 4 and draw(st.booleans()) and image.layout == torch.strided:
        image = image.to(memory_format=torch.channels_last)
    return image


@pytest.mark.parametrize('how', several(quick=25, slow=1000))
@pytest.mark.parametrize('name', zoo.MICRO)
def test_images(name, how):
    model = timm.create_model(name).eval()

    @how
    @given(images(), JUNK | st.integers(-5, 5) | st.lists(st.integers(-5, 5), max_size=5), st.sampled_from(['NCHW', 'NHWC', 'x']))
    def forward(image, indices, output_fmt):
        with torch.no_grad():
            logits = check(lambda: model(image))
            maps = check(lambda: model.forward_intermediates(image, indices, output_fmt=output_fmt, intermediates_only=True))
        if logits is not None:
            assert logits.shape == (len(image), model.num_classes) and logits.dtype == image.dtype
        if maps is not None:
            assert all(len(m) == len(image) for m in maps)
    forward()
