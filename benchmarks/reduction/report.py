"""The table and the picture from the rows."""
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from vitzoo.reduction import METHODS, Method

from ..pages import insert
from .study import PLAIN

START, END = '<!-- study -->', '<!-- end of study -->'
KINDS = {'accuracy': 'as it comes', 'tuned_accuracy': 'fine-tuned'}


def summarise(rows: Iterable[dict[str, str]]) -> dict[str, dict]:
    """Setting -> method, macs, tokens, number of seeds, and for each kind of accuracy its median, lowest and highest over the seeds."""
    groups = {}
    for row in rows:
        groups.setdefault(row['setting'], []).append(row)
    methods = [PLAIN, *METHODS]
    order = sorted(groups, key=lambda name: methods.index(groups[name][0]['method']))  # settings as they came
    return {name: {'method': groups[name][0]['method'], 'macs': int(groups[name][0]['macs']), 'tokens': int(groups[name][0]['tokens']),
                   'seeds': len(groups[name]), **{kind: _spread([float(row[kind]) for row in groups[name]]) for kind in KINDS}}
            for name in order}


def learns(method: str) -> bool:
    """Whether it brings parameters, which somebody has to train before it means anything."""
    return method in METHODS and METHODS[method].attach is not Method.attach


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def table(summary: dict[str, dict]) -> str:
    lines = [f'| setting | patches left | MACs, M | share | {" | ".join(f"top-1 %, {kind}" for kind in KINDS.values())} | seeds |',
             '| --- | ---: | ---: | ---: | ---: | ---: | ---: |']
    whole = summary[PLAIN]['macs'] if PLAIN in summary else None
    for name, s in summary.items():
        cells = ['-' if kind == 'accuracy' and learns(s['method']) else '{:.1f} [{:.1f}, {:.1f}]'.format(*s[kind]) for kind in KINDS]
        share = f'{s["macs"] / whole:.2f}' if whole else ''
        lines.append(f'| `{name}` | {s["tokens"]} | {s["macs"] / 1e6:.2f} | {share} | {" | ".join(cells)} | {s["seeds"]} |')
    return '\n'.join(lines)


def report(rows: list[dict[str, str]], page: str | Path, picture: str | Path) -> None:
    """Write the table between the markers of a Markdown page (made if there is none), and draw accuracy against multiply-adds.

    Raises ValueError if there is no row, or if the page has no markers.
    """
    from vitzoo.viz.pareto import Point, draw_pareto
    if not rows:
        raise ValueError('no rows yet; run some first')
    summary = summarise(rows)
    insert(table(summary), page, START, END)
    panels = {}
    for column, kind in KINDS.items():
        points = [Point(s['method'], s['macs'] / 1e6, *s[column]) for s in summary.values()
                  if column != 'accuracy' or not learns(s['method'])]
        panels[f'{kind}: top-1 %, test part', 'MACs, M'] = points, summary[PLAIN][column][0] if PLAIN in summary else None
    draw_pareto(panels, picture)
