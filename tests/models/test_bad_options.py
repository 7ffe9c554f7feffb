"""Whatever comes as an option, an index or an image: it works, or a ValueError says in one line what is wrong and what was expected.

Options are those of the constructors' signatures, so that a new model's are covered by themselves.
"""
import contextlib
import functools
import inspect

import numpy as np
import pytest
import timm
import torch
import zoo
from timm.models._features import FeatureDictNet, FeatureHookNet, FeatureListNet

from vitzoo.arguments import show

micro_model = pytest.mark.parametrize('name', zoo.MICRO)

HUGE = (10 ** 9, 2 ** 31, 2 ** 63, 10 ** 30, 10 ** 5000)
NUMBERS = (True, -1, 0, 2, -0.5, 0.5, 1.5, 1e30, float('nan'), float('inf'), -float('inf'), 3 + 1j, *HUGE)
NUMPY = (np.int64(2), np.float32(0.5), np.float32('nan'), np.True_, np.ones(4), np.array('a'), torch.ones(4), torch.tensor(1.5))
STRINGS = ('', 'no_such', '2', 'a\nb', 'x' * 10 ** 5, b'2')
OTHERS = (None, object(), int, len, set(), {}, {1: 2}, [], (), [2], (2, 2), [[1, 1], [1, 1]])
FOURS = tuple((v,) * 4 for v in (None, True, -1, 0, 1.5, float('nan'), float('inf'), 'a', (2, 2, 2), ([1],), *HUGE))
VALUES = NUMBERS + NUMPY + STRINGS + OTHERS + FOURS


def arguments(function):
    return [p.name for p in inspect.signature(function).parameters.values() if p.name != 'self' and p.kind is not p.VAR_KEYWORD]


def complaint(call, name):
    """What is wrong with how a call takes a value for the argument of this name; None if it works, or refuses it as it ought to."""
    try:
        call()
    except ValueError as e:
        text = str(e)
        if '\n' in text or len(text) > 400:
            return f'long: {text[:200]}'
        if name not in text or not ('expected' in text or 'must' in text):
            return f'says little: {text}'
    except Exception as e:
        return f'{type(e).__name__}: {str(e)[:200]}'
    return None


def complaints(call, name, values=VALUES):
    found = {show(value): complaint(lambda value=value: call(value), name) for value in values}
    return {value: text for value, text in found.items() if text}


def smallest(model):
    """An image size for quick tests that the model takes."""
    return tuple(max(32, n) for n in model.pretrained_cfg.get('min_input_size', (3, 1, 1))[1:])


def is_device(value):
    """Whether torch knows such a device; if there is none, it says so itself."""
    with contextlib.suppress(Exception):
        return bool(torch.device(value))


@micro_model
@pytest.mark.parametrize('part', zoo.first_quick(range(5)))
@torch.no_grad()
def test_options(name, part):
    """By timm's way and directly, where None is a value too. What is built runs."""
    model_cls = type(timm.create_model(name))

    def build_and_run(option, value):
        model = timm.create_model(name, **{option: value}).eval()
        size = smallest(model)
        weight = next(model.parameters())
        try:
            model(torch.zeros(1, model.in_chans, *size, device=weight.device, dtype=weight.dtype))
        except ValueError as e:
            assert 'Image of' in str(e)

    bad = {}
    for i, option in enumerate(arguments(model_cls.__init__)):
        values = [value for value in VALUES[(i + part) % 5::5] if option != 'device' or not is_device(value)]
        bad[option] = complaints(lambda value, option=option: build_and_run(option, value), option, values)
        bad[option] |= complaints(lambda value, option=option: model_cls(**{option: value}), option, [None])
    assert {option: found for option, found in bad.items() if found} == {}


@micro_model
@pytest.mark.parametrize('method, argument', [
    ('reset_classifier', 'num_classes'), ('reset_classifier', 'global_pool'), ('prune_intermediate_layers', 'indices'),
    ('forward_intermediates', 'indices'), ('forward_intermediates', 'output_fmt'), ('set_compressed_size', 'size'),
])
def test_methods(name, method, argument):
    model = timm.create_model(name).eval()
    if not hasattr(model, method):
        pytest.skip('has no such method')
    image = [torch.zeros(1, 3, *smallest(model))] if method.startswith('forward') else []
    others = {'num_classes': 2} if argument == 'global_pool' else {}
    with torch.no_grad():
        assert complaints(lambda value: getattr(model, method)(*image, **others, **{argument: value}), argument) == {}


@micro_model
def test_feature_options(name):
    build = functools.partial(timm.create_model, name)
    not_pretrained = [v for v in VALUES if v is not True and v is not np.True_]
    found = {
        'features_only': complaints(lambda value: build(features_only=value), 'features_only'),
        'pretrained': complaints(lambda value: build(pretrained=value), 'pretrained', not_pretrained),
        'pretrained_cfg_overlay': complaints(lambda value: build(pretrained_cfg_overlay=value), 'pretrained_cfg_overlay',
                                             [v for v in VALUES if not isinstance(v, dict)]),
        'out_indices': complaints(lambda value: build(features_only=True, out_indices=value), 'out_indices'),
        'feature_cls': complaints(lambda value: build(features_only=True, feature_cls=value), 'feature_cls',
                                  [FeatureListNet, FeatureDictNet, *(v for v in VALUES if v is not int)]),
    }
    assert {argument: texts for argument, texts in found.items() if texts} == {}


@micro_model
@pytest.mark.parametrize('feature_cls', ['getter', 'hook', 'fx', 'list', 'dict', 'HOOK', FeatureHookNet, FeatureListNet])
@torch.no_grad()
def test_feature_wrappers(name, feature_cls):
    """Maps are laid out as the wrapper says, the same in each, or the wrapper is refused by name."""
    torch.manual_seed(1)
    try:
        features = timm.create_model(name, features_only=True, feature_cls=feature_cls, out_indices=(1, -1)).eval()
    except ValueError as e:
        assert 'feature_cls=' in str(e) and "expected 'getter'" in str(e)
        assert feature_cls in ('list', 'dict', FeatureListNet) or type(timm.create_model(name)).columnar
        return
    torch.manual_seed(1)  # for the same weights
    getter = timm.create_model(name, features_only=True, out_indices=(1, -1)).eval()
    x = torch.randn(1, 3, 112, 144)
    assert features.feature_info.channels() == getter.feature_info.channels()
    for found, expected in zip(features(x), getter(x), strict=True):
        if features.output_fmt == 'NHWC':
            found = found.permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('stride', [8, 16, 32, 'a'])
@pytest.mark.parametrize('features_only', [False, True])
def test_output_stride_is_refused_with_the_reason(stride, features_only):
    for name in zoo.NAMES:
        build = functools.partial(timm.create_model, name, output_stride=stride, features_only=features_only)
        assert complaint(build, 'output_stride') is None
        with pytest.raises(ValueError, match=f'{name} has its own strides'):
            build()


ZEROS = torch.zeros(1, 3, 64, 64)
IMAGES = [
    (None, 'NoneType'), (ZEROS.numpy(), 'ndarray'), ([[1.]], 'list'), ('photo.png', 'str'),
    (torch.zeros(()), '0 dimensions'), (torch.zeros(1, 3, 0, 64), '0x64'), (torch.zeros(1, 0, 64, 64), 'got 0'),
    (ZEROS.to_sparse(), 'dense'), (torch.nested.as_nested_tensor([ZEROS[0], ZEROS[0, :, :32]], layout=torch.jagged), 'dense'),
    *((ZEROS.to(dtype), str(dtype)) for dtype in (torch.bool, torch.int64, torch.cfloat, torch.half, torch.double, torch.float8_e5m2)),
]


@micro_model
def test_images(name):
    model, features = timm.create_model(name).eval(), timm.create_model(name, features_only=True).eval()
    for image, message in IMAGES:
        for forward in (model, model.forward_features, model.forward_intermediates, features):
            with pytest.raises(ValueError, match=message) as e:
                forward(image)
            assert '\n' not in str(e.value)


@micro_model
@torch.no_grad()
def test_precision_of_image_and_model(name):
    """They must be the same, unless autocast makes them so."""
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, *smallest(model))
    for half in (torch.float16, torch.bfloat16):
        halved = timm.create_model(name, dtype=half).eval()
        assert halved(x.to(half)).dtype == half
        for m, image in ((halved, x), (model, x.to(half))):
            with pytest.raises(ValueError, match='autocast'):
                m(image)
            with torch.autocast('cpu', half):
                assert m(image).isfinite().all()
    with torch.autocast('cpu', torch.bfloat16), pytest.raises(ValueError, match='float64'):
        model(x.double())
    assert model.double()(x.double()).dtype == torch.double


@micro_model
def test_valid_forms(name):
    """What people write for the same number: of numpy, a list for a tuple, a name for a device or a precision."""
    plain = timm.create_model(name, num_classes=7, drop_rate=0.5)
    parameters = inspect.signature(type(plain).__init__).parameters
    options = {'num_classes': np.int64(7), 'drop_rate': np.float32(0.5), 'in_chans': torch.tensor(3), 'device': 'cpu', 'dtype': 'float32'}
    for option in parameters:
        value = getattr(plain, option, None)
        if isinstance(value, tuple):
            options[option] = [np.int32(n) for n in value]
    other = timm.create_model(name, **options)
    shapes, expected = ({key: value.shape for key, value in m.state_dict().items()} for m in (other, plain))
    assert shapes == expected
    assert type(other.num_classes) is int and type(other.in_chans) is int
