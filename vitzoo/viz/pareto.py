"""Quality against cost."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vitzoo.extras import require
from vitzoo_runtime.files import MARK, replacing
from vitzoo_runtime.pictures import palette


class Point(NamedTuple):
    """A model: its cost, and the middle, lowest and highest of its quality; more is better."""
    name: str
    cost: float
    quality: float
    low: float
    high: float


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at the same cost or less, cheapest first."""
    front = []
    for point in sorted(points, key=lambda p: (p.cost, -p.quality)):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front


def draw_pareto(panels: Mapping[tuple[str, str], tuple[Sequence[Point], float | None]], path: str | Path, *, columns: int = 3) -> Path:
    """Draw a panel for each (title, name of the cost) and write a PNG.

    A panel has points and, if not None, a level that all should reach (dashed). Bars go from the lowest to the highest quality, a line
    joins the Pareto front, and a name has one colour everywhere.

    Raises ValueError if there is nothing to draw; ImportError without matplotlib (extra `viz`).
    """
    names = list(dict.fromkeys(point.name for points, _ in panels.values() for point in points))
    if not names:
        raise ValueError('no points to draw; expected at least one panel with a point')
    figure_class = require('matplotlib.figure', 'viz').Figure  # not pyplot, which would choose a window system
    colours = {name: tuple(c / 255 for c in colour) for name, colour in zip(names, palette(len(names)), strict=True)}
    markers = dict(zip(names, 'osD^vPXphd' * (len(names) // 10 + 1), strict=False))

    columns, rows = min(columns, len(panels)), -(-len(panels) // columns)
    figure = figure_class(figsize=(4.2 * columns, 3.4 * rows + 0.7), layout='constrained')
    for axes, ((title, cost), (points, level)) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        front = pareto_front(points)
        axes.plot([p.cost for p in front], [p.quality for p in front], color='0.75', linewidth=1.5, zorder=1)
        if level is not None:
            axes.axhline(level, color='0.5', linewidth=1, linestyle='--', zorder=1)
        for p in points:
            axes.errorbar(
                p.cost, p.quality, [[p.quality - p.low], [p.high - p.quality]], fmt=markers[p.name], color=colours[p.name], label=p.name,
                markersize=8, markeredgecolor='0.2', markeredgewidth=0.6, capsize=3, zorder=2)
        axes.set(title=title, xlabel=cost)
        axes.margins(0.12)
        axes.grid(alpha=0.25)
    for axes in figure.axes[len(panels):]:
        axes.remove()
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=min(len(handles), 2 * columns), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={'Software': None, 'Comment': MARK})
    return Path(path)
