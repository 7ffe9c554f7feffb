"""Token maps over an image: regions can be told apart, what is dropped fades, what is counted goes from dark to bright."""
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitzoo.viz import draw_token_maps
from vitzoo.viz.token_maps import COLOURS, FADED, describe, draw_token_map, group_colours
from vitzoo_runtime.pictures import enlarged

ROOT = Path(__file__).parents[2]


def a_map(labels, kind='groups', what='windows', total=None, stride=(8, 8)):
    labels = np.array(labels)
    return SimpleNamespace(layer='blocks.0', what=what, kind=kind, labels=labels, total=labels.max() + 1 if total is None else total,
                           stride=stride)


def picture(height=16, width=24, value=90):
    return np.full((height, width, 3), value, np.uint8)


def panel(m, image, factor=1):
    return np.asarray(draw_token_map(enlarged(image, factor * max(image.shape))[0], m, factor), int)


def centre(pixels, i, j, side=8):
    """The colour in the middle of a position."""
    return pixels[i * side + side // 2 - 1, j * side + side // 2 - 1]


def test_groups_are_told_apart():
    pixels = panel(a_map([[0, 0, 1], [2, 2, 1]]), picture())
    a, b, c = centre(pixels, 0, 0), centre(pixels, 0, 2), centre(pixels, 1, 0)
    assert (centre(pixels, 0, 1) == a).all() and (centre(pixels, 1, 2) == b).all() and (centre(pixels, 1, 1) == c).all()
    assert min(np.abs(x - y).sum() for x, y in ((a, b), (b, c), (a, c))) > 60
    assert (pixels[3, 15] == 255).all() and (pixels[7, 3] == 255).all()  # edges between two groups
    assert (pixels[3, 7] == a).all()  # none within


def test_tokens():
    image = picture()
    pixels = panel(a_map([[0, 1, -1], [2, 2, -1]], 'tokens', 'tokens'), image)
    assert (centre(pixels, 0, 0) == 90).all() and (centre(pixels, 0, 1) == 90).all() and (pixels[3, 7] == 90).all()
    assert centre(pixels, 0, 2).min() > 90 + 0.8 * (FADED - 90) and (pixels[7, 19] == centre(pixels, 0, 2)).all()
    assert np.ptp(centre(pixels, 1, 0)) > 20  # a colour of its own
    one = panel(a_map([[0, 1, 0], [0, 0, 0]]), image)
    assert np.ptp(centre(one, 0, 1)) > 20  # of other groups a single position has one too


def test_counts_go_from_dark_to_bright():
    pixels = panel(a_map([[0, 3, 9], [9, 4, 0]], 'counts', 'regions', 20), picture())
    light = [centre(pixels, 0, j) @ (0.3, 0.6, 0.1) for j in range(3)]
    assert light == sorted(light) and light[0] + 20 < light[1] < light[2] - 20
    assert not (pixels == 255).all(-1).any()  # each position has a count of its own
    panel(a_map([[0, 0, 0], [0, 0, 0]], 'counts', 'regions', 20), picture())
    regions = panel(a_map([[0, 5, 5], [0, 5, 5]], 'counts', 'regions', 20), picture())
    assert (regions[:, 7] == 255).all() and not (regions[:, 8:] == 255).all(-1).any()


def test_a_map_may_be_larger_or_smaller_than_the_image():
    larger = panel(a_map([[0, 1], [2, 3]]), picture(10, 11))
    assert larger.shape == (10, 11, 3)
    smaller = panel(a_map([[0, 1]]), picture(16, 24))
    assert smaller[12, 3].min() > 200 and smaller[3, 20].min() > 200 and smaller[3, 3].min() < 200


def test_each_axis_has_its_stride():
    pixels = panel(a_map([[0, 1, 2]], stride=(16, 8)), picture(16, 24))
    assert (pixels[14, 3] == pixels[2, 3]).all() and (pixels[3, 4] != pixels[3, 12]).any()


@pytest.mark.parametrize('groups', [
    np.arange(400).reshape(20, 20), np.arange(12).reshape(3, 4).repeat(3, 0).repeat(3, 1), np.arange(24).reshape(4, 6).repeat(2, 1)])
def test_neighbours_never_share_a_colour(groups):
    names, counts = np.unique(groups, return_counts=True)
    assert (names == np.arange(len(names))).all()
    colours = group_colours(groups, counts)
    for a, b in (groups[1:], groups[:-1]), (groups[:, 1:], groups[:, :-1]):
        differ = a != b
        assert (np.abs(colours[a[differ]] - colours[b[differ]]).sum(-1) > 0).all()
    if len(names) <= COLOURS:
        assert len(np.unique(colours, axis=0)) == len(names)


def test_sheet_and_titles():
    maps = [a_map([[0, 1], [2, 2]]), a_map([[0, -1], [1, -1]], 'tokens', 'tokens', 3), a_map([[0, 4], [2, 2]], 'counts', 'regions', 9)]
    assert [*map(describe, maps)] == ['blocks.0: 3 windows', 'blocks.0: 3 tokens', 'blocks.0: 0 to 4 of 9 regions']
    assert describe(a_map([[0]])) == 'blocks.0: 1 window'
    image = picture(16, 16)
    sheet = draw_token_maps(image, maps, columns=2, size=100)
    assert sheet.size[0] > 2 * 112 and sheet.size[1] > 2 * 112
    assert draw_token_maps(image[..., 0], maps[:1]).size[0] > 2 * 320


@pytest.mark.parametrize('maps, message', [([], 'at least one'), ([a_map([[0]], 'shares')], "kind='shares': expected 'groups'")])
def test_what_cannot_be_drawn(maps, message):
    with pytest.raises(ValueError, match=message):
        draw_token_maps(picture(), maps)


def test_without_torch_and_matplotlib():
    code = f'''
import sys
from types import ModuleType, SimpleNamespace
import numpy as np
sys.modules.update(torch=None, timm=None, matplotlib=None)
package = sys.modules['vitzoo'] = ModuleType('vitzoo')  # whose own import brings torch
package.__path__ = [{str(ROOT / 'vitzoo')!r}]
from vitzoo.viz import draw_token_maps
m = SimpleNamespace(layer='x', what='windows', kind='groups', labels=np.array([[0, 1]]), total=2, stride=(8, 8))
print(draw_token_maps(np.zeros((8, 16, 3), np.uint8), [m]).size)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith('('), done.stderr
