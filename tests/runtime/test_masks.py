"""COCO's run-length codes, against pycocotools."""
import json

import numpy as np
import pytest

from vitzoo_runtime.masks import decode_rle, encode_rle


@pytest.mark.parametrize('mask', [np.zeros((3, 4)), np.ones((3, 4)), np.eye(5, 3), np.random.RandomState(0).rand(17, 9) > 0.5])
def test_run_length_code(mask):
    mask = mask.astype(bool)
    rle = json.loads(json.dumps(encode_rle(mask)))
    assert sum(rle['counts']) == mask.size and (decode_rle(rle) == mask).all()
    api = pytest.importorskip('pycocotools.mask')
    assert (api.decode(api.frPyObjects(rle, *mask.shape)) == mask).all()


def test_code_is_the_same_for_other_types_and_layouts():
    mask = np.random.RandomState(0).rand(6, 7) > 0.5
    for same in mask.astype(np.uint8) * 255, np.asfortranarray(mask):
        assert encode_rle(same) == encode_rle(mask)
    assert encode_rle(np.zeros((0, 4), bool)) == {'size': [0, 4], 'counts': [0]}
