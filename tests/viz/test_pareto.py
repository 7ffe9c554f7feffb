import numpy as np
import pytest
from PIL import Image

from vitzoo.viz.pareto import Point, draw_pareto, pareto_front

POINTS = [Point('a', 3, 0.7, 0.6, 0.8), Point('b', 1, 0.5, 0.5, 0.5), Point('c', 2, 0.4, 0.3, 0.5), Point('d', 3, 0.9, 0.9, 0.9)]


def test_front():
    assert [p.name for p in pareto_front(POINTS)] == ['b', 'd']


def test_picture(tmp_path):
    pytest.importorskip('matplotlib')
    panels = {('quality', 'cost'): (POINTS, 0.6), ('another', 'cost'): (POINTS[:1], None)}
    path = draw_pareto(panels, tmp_path / 'x.png')
    pixels = np.asarray(Image.open(path).convert('RGB'))
    assert pixels.shape[1] > pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # more than an empty frame
    assert [p.name for p in tmp_path.iterdir()] == ['x.png']
    with pytest.raises(ValueError, match='no points'):
        draw_pareto({('quality', 'cost'): ([], 0.5)}, tmp_path / 'y.png')
