"""Quality against cost."""
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitzoo.extras import require
from vitzoo_runtime.files import MARK, replacing
from vitzoo_runtime.pictures import palette

# where a name may stand: how far from its point, in points of the page; which end of it is there, and on which side; how far up or down
DISTANCES = (7, 13, 22, 32, 44, 58, 74)
SIDES = {'left': 1, 'right': -1}
DIRECTIONS = ((1, 0), (.9, .8), (.9, -.8), (0, 1.3), (0, -1.3))


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


def draw_groups(groups: Mapping[str, Sequence[Point]], path: str | Path, *, cost: str, quality: str, title: str = '') -> Path:
    """Draw many points on one panel, a colour for each group, and write a PNG.

    The cost is on a logarithmic axis. A line joins the Pareto front of all groups; the points of it, and all of the first group, have their
    names beside them.

    Raises ValueError if there is nothing to draw; ImportError without matplotlib (extra `viz`).
    """
    points = [point for group in groups.values() for point in group]
    if not points:
        raise ValueError('no points to draw; expected at least one')
    figure_class = require('matplotlib.figure', 'viz').Figure
    ticker = require('matplotlib.ticker', 'viz')
    front = pareto_front(points)
    figure = figure_class(figsize=(10, 6.5), layout='constrained')
    axes = figure.subplots()
    axes.set_xscale('log')
    axes.plot([p.cost for p in front], [p.quality for p in front], color='0.75', linewidth=1.5, zorder=1)
    labels = []
    for i, ((name, group), colour) in enumerate(zip(groups.items(), palette(len(groups)), strict=True)):
        colour = tuple(c / 255 for c in colour)
        axes.scatter([p.cost for p in group], [p.quality for p in group], color=colour, marker='os^D'[i % 4], edgecolor='0.2',
                     linewidth=0.6, s=45, label=name, zorder=2)
        labels += group if i == 0 else [p for p in group if p in front]
    axes.set(title=title, xlabel=cost, ylabel=quality)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.margins(0.08)
    axes.grid(alpha=0.25, which='both')
    axes.legend(loc='lower right')
    _write_names(axes, labels, points)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={'Software': None, 'Comment': MARK})
    return Path(path)


def _write_names(axes, labels: Sequence[Point], points: Sequence[Point]) -> None:
    """Write names beside their points, each in the nearest place where it covers no other name and no point; a thin line leads to one that
    is further away."""
    axes.figure.draw_without_rendering()  # settles the layout, so that places on the page are known
    scale, frame = axes.figure.dpi / 72, axes.get_window_extent()
    at = {p: axes.transData.transform((p.cost, p.quality)) for p in points}
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in at.values()]
    for p in sorted(labels, key=lambda p: at[p][1]):
        text = axes.annotate(p.name, (p.cost, p.quality), xytext=(0, 0), textcoords='offset points', fontsize=7, color='0.25', va='center',
                             zorder=3)
        width, height = text.get_window_extent().size
        places = {}
        for distance in DISTANCES:
            for side, (dx, dy) in itertools.product(SIDES, DIRECTIONS):
                x, y = at[p] + scale * distance * np.array((SIDES[side] * dx, dy))
                left = x - width * (1 - SIDES[side]) / 2
                places[distance, side, SIDES[side] * dx, dy] = left, y - height / 2, left + width, y + height / 2
        distance, side, dx, dy = next((key for key, box in places.items() if _is_free(box, taken, frame)), next(iter(places)))
        taken.append(places[distance, side, dx, dy])
        text.set(ha=side)
        text.xyann = distance * dx, distance * dy
        if distance > DISTANCES[0]:
            axes.annotate('', (p.cost, p.quality), xytext=text.xyann, textcoords='offset points', zorder=1,
                          arrowprops=dict(arrowstyle='-', color='0.7', linewidth=0.6, shrinkA=0, shrinkB=4))


def _is_free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]], frame) -> bool:
    """Whether the box (left, bottom, right, top) is within the frame and covers none of the others."""
    left, bottom, right, top = box
    inside = frame.x0 <= left and right <= frame.x1 and frame.y0 <= bottom and top <= frame.y1
    return inside and all(right < x0 or x1 < left or top < y0 or y1 < bottom for x0, y0, x1, y1 in taken)
