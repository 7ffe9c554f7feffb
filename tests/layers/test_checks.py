import numpy as np
import pytest
from timm.models._features import feature_take_indices

from vitzoo.arguments import check_range
from vitzoo.layers import check_choice, check_indices, check_pair, check_ratios, check_stages

FINE = dict(embed_dims=(32, 64), depths=(1, 2), num_heads=(2, 4))


def test_check_stages_takes_what_fits():
    check_stages(**FINE)
    check_stages(**FINE, topks=[1, -2])
    check_stages((5, 7), (1, 1))


@pytest.mark.parametrize('wrong, message', [
    (dict(embed_dims=()), '1 to 16777216 channels per stage'),
    (dict(embed_dims=(32, 0)), '1 to 16777216 channels per stage'),
    (dict(depths=(1, 2, 3)), r'depths=\(1, 2, 3\): expected one value per stage, 2 as in'),
    (dict(depths=(1, 0)), r'depths=\(1, 0\): expected at least 1'),
    (dict(num_heads=(3,)), r'num_heads=\(3,\): expected one value per stage'),
    (dict(depths=(1, 10 ** 9)), 'at most 1000'),
    (dict(embed_dims=(32, 10 ** 9)), 'expected 1 to 16777216 channels'),
    (dict(embed_dims=(32, 64), least=48), r'embed_dims=\(32, 64\): expected 48 to 16777216 channels'),
    (dict(num_heads=(2, 3)), '64 channels must divide into 3 heads'),
    (dict(embed_dims=(32, 63), num_heads=(2, 3), even=True), '63 channels must be even and divide into 3 heads'),
    (dict(stoken_size=(1,)), r'stoken_size=\(1,\): expected one value per stage'),
])
def test_check_stages_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_stages(**{**FINE, **wrong})


@pytest.mark.parametrize('indices, levels', [
    (None, [0, 1, 2, 3]), (1, [3]), (4, [0, 1, 2, 3]), ([-1], [3]), ((0, 2), [0, 2]), ([np.int64(-4)], [0]), (np.int32(2), [2, 3]),
], ids=str)
def test_check_indices(indices, levels):
    """What timm takes from a model of four levels."""
    found = check_indices('indices', indices, 4)
    assert found == levels == feature_take_indices(4, indices if not isinstance(indices, np.integer) else int(indices))[0]
    assert all(type(level) is int for level in found)


@pytest.mark.parametrize('indices', [0, -1, 5, 7, [4], [-5], [], [0, None], True, [True], 1.0, '1', 'all', {}, [[0]], 10 ** 30], ids=str)
def test_check_indices_refuses(indices):
    with pytest.raises(ValueError, match='out_indices=.*: expected the number of last levels, 1 to 4, or a list of levels from -4 to 3'):
        check_indices('out_indices', indices, 4)


@pytest.mark.parametrize('call, message', [
    (lambda: check_range(1, 5, n=0), 'n=0: expected 1 to 5'),
    (lambda: check_range(1, 5, n=(1, 6)), r'n=\(1, 6\): expected 1 to 5'),
    (lambda: check_ratios((8, 64), ratio=0.1), 'ratio=0.1: expected a positive ratio .* that leaves 1 channel of 8'),
    (lambda: check_ratios((8, 64), ratio=1e9), 'at most 100'),
    (lambda: check_pair('size', (3, 0)), r'size=\(3, 0\): expected a positive number or pair'),
    (lambda: check_choice('form', 'c', 'a', 'b', None), "form='c': expected 'a', 'b' or None"),
    (lambda: check_choice('form', np.ones(2), 'a'), "expected 'a'"),
])
def test_ranges_and_choices(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_lies_in_range_passes():
    check_range(1, 5, n=1, m=(5, 1.5))
    check_ratios((8, 64), ratio=0.125)
    check_choice('form', None, 'a', None)
    assert check_pair('size', 3) == (3, 3) and check_pair('size', (2, 1)) == (2, 1)
