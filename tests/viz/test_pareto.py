import numpy as np
import pytest
from PIL import Image

from vitzoo.viz.pareto import Point, draw_groups, draw_pareto, pareto_front

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


def test_names_cover_each_other_nowhere(tmp_path, monkeypatch):
    """Twelve of a group, near each other, and as many of another in between."""
    figure_class = pytest.importorskip('matplotlib.figure').Figure
    drawn = []
    monkeypatch.setattr(figure_class, 'savefig', lambda self, path, **_: (drawn.append(self), open(path, 'wb').close()))
    groups = {name: [Point(f'{name}_model_{i}', 10 + i, 80 + (i + shift) % 3 / 10, 0, 0) for i in range(12)]
              for name, shift in (('ours', 0), ('others', 1))}
    draw_groups(groups, tmp_path / 'x.png', cost='ms', quality='%')
    axes, = drawn[0].axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert set(boxes) >= {p.name for p in groups['ours']} and len(boxes) < 24
    points = [axes.transData.transform((p.cost, p.quality)) for group in groups.values() for p in group]
    for name, box in boxes.items():
        assert not [other for other, its in boxes.items() if other != name and box.overlaps(its)], name
        assert not [p for p in points if box.contains(*p)] and axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
