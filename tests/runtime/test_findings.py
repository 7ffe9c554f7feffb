"""What was found, as data, pictures and lines of a table."""
import json

import numpy as np
from PIL import Image

from vitzoo_runtime import findings
from vitzoo_runtime.masks import decode_rle
from vitzoo_runtime.pictures import palette

IMAGE = Image.new('RGB', (40, 30), (128, 128, 128))


def test_objects():
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 5:9, 10:20] = True
    boxes = np.array([[10, 5, 20, 9.126], [0, 0, 3, 3]], np.float32)
    data, pictures = findings.objects(IMAGE, boxes, np.array([1, 0]), np.array([.75, .5], np.float32), masks, ['cat', 'dog'])
    first, second = json.loads(json.dumps(data))['objects']
    assert (first['label'], first['name'], first['score'], first['box']) == (1, 'dog', .75, [10, 5, 20, 9.13])
    assert (decode_rle(first['mask']) == masks[0]).all() and second['mask']['counts'] == [1200]
    assert pictures['picture'].size == (640, 480)
    assert findings.lines(data, 'share') == [('1 x dog', '0.75'), ('1 x cat', '0.50')]


def test_of_very_many_objects_the_picture_shows_some():
    boxes = np.array([[i % 10, i % 10, i % 10 + 20, i % 10 + 20] for i in range(100)], np.float32)
    scores = np.linspace(.9, .1, 100, dtype=np.float32)
    masks = np.zeros((100, 30, 40), bool)
    data, pictures = findings.objects(IMAGE, boxes, np.arange(100) % 3, scores, masks, ['a', 'b', 'c'])
    assert len(data['objects']) == 100 and 0 < data['drawn'] < 10
    data, _ = findings.objects(IMAGE, boxes[:40], np.arange(40) % 3, scores[:40], None, ['a', 'b', 'c'])
    assert 'drawn' not in data


def test_no_objects_and_objects_without_masks():
    nothing, _ = findings.objects(IMAGE, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros((0, 30, 40), bool), ['cat'])
    assert nothing == {'objects': []} and findings.lines(nothing, 'share') == [('nothing', '')]
    data, _ = findings.objects(IMAGE, np.array([[1, 2, 3, 4]]), np.array([0]), np.array([1.]), None, ['cat'])
    assert 'mask' not in data['objects'][0]


def test_regions():
    labels = np.zeros((30, 40), np.int64)
    labels[:, 30:] = 2
    data, pictures = findings.regions(IMAGE, labels, ['a', 'b', 'c'])
    assert data == {'classes': [{'class': 0, 'name': 'a', 'share': .75}, {'class': 2, 'name': 'c', 'share': .25}]}
    assert findings.lines(data, 'share') == [('a', '75.0%'), ('c', '25.0%')]
    assert (np.asarray(pictures['labels']) == labels).all()
    assert pictures['labels'].convert('RGB').getpixel((35, 5)) == palette(3)[2]
