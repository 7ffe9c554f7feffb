import pytest

from vitzoo.layers import check_stages

FINE = dict(embed_dims=(32, 64), depths=(1, 2), num_heads=(2, 4))


def test_check_stages_takes_what_fits():
    check_stages(**FINE)
    check_stages(**FINE, topks=[1, -2])
    check_stages((5, 7), (1, 1))


@pytest.mark.parametrize('wrong, message', [
    (dict(embed_dims=()), 'a positive number of channels per stage'),
    (dict(embed_dims=(32, 0)), 'a positive number of channels per stage'),
    (dict(depths=(1, 2, 3)), r'depths=\(1, 2, 3\): expected one value per stage, 2 as in'),
    (dict(depths=(1, 0)), r'depths=\(1, 0\): expected at least 1'),
    (dict(num_heads=3), 'num_heads=3: expected one value per stage'),
    (dict(num_heads=(2, 3)), '64 channels must divide into 3 heads'),
    (dict(embed_dims=(32, 63), num_heads=(2, 3), even=True), '63 channels must be even and divide into 3 heads'),
    (dict(stoken_size=(1,)), r'stoken_size=\(1,\): expected one value per stage'),
])
def test_check_stages_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_stages(**{**FINE, **wrong})
