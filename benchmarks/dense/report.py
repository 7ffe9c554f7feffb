"""Tables, a plot and a verdict from the rows."""
import itertools
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from ..pages import insert
from .plan import BASELINE, FAMILIES, MODELS, TASKS
from .rows import read_rows

START, END = '<!-- results -->', '<!-- end of results -->'


def summarise(rows: Iterable[dict[str, str]]) -> dict[tuple[str, str], dict[str, tuple]]:
    """(model, task) to column to median, lowest and highest over the seeds that have it, in the order of `MODELS` and `TASKS`.

    The column 'seeds' is how many have figures of the test part, and how many there are.
    """
    rows, result = list(rows), {}
    for model, task in itertools.product(MODELS, TASKS):
        mine = [row for row in rows if (row['model'], row['task']) == (model, task)]
        if mine:
            names = [part + metric for metric in TASKS[task].metrics for part in ('test_', '')]
            values = {name: [float(row[name]) for row in mine if row[name]] for name in (*names, 'params', 'macs', 'cpu_seconds')}
            result[model, task] = {name: (median(v), min(v), max(v)) for name, v in values.items() if v}
            result[model, task]['seeds'] = len(values[names[0]]), len(mine)
    return result


def _judged(summary: dict, task: str) -> str:
    """The column by which a task is drawn and judged: the first metric on the test part or, if a model lacks it, on the validation part."""
    metric = next(iter(TASKS[task].metrics))
    tested = [f'test_{metric}' in columns for (_, other), columns in summary.items() if other == task]
    return f'test_{metric}' if tested and all(tested) else metric


def _part(column: str) -> str:
    return 'test' if column.startswith('test_') else 'val'


def table(rows: Iterable[dict[str, str]], seconds: bool = True) -> str:
    """The results in Markdown: median [lowest, highest] over the seeds that have a figure, bold where the best median is; one table a task,
    with or without the time of training. Metrics on the test part, where there are any, and on the validation part.
    """
    summary, lines = summarise(rows), []
    for task, spec in TASKS.items():
        models = [model for model in MODELS if (model, task) in summary]
        if not models:
            continue
        what = 'classifier' if task == 'classification' else 'backbone'
        there = {name: [summary[model, task][name][0] for model in models if name in summary[model, task]]
                 for metric in spec.metrics for name in (f'test_{metric}', metric)}
        best = {name: max(medians) for name, medians in there.items() if medians}
        names = ' | '.join(f'{name.removeprefix("test_").replace("_", " ")}, {_part(name)}' for name in best)
        lines += [f'**{spec.title}** (bar: {spec.bar:g})', '',
                  f'| model | {names} | seeds | {what} parameters, M | {what} MACs, M |{" CPU seconds |" * seconds}',
                  f'| --- |{" ---: |" * (len(best) + 3 + seconds)}']
        for model in models:
            s = summary[model, task]
            cells = []
            for name in best:
                if name not in s:
                    cells.append('-')
                    continue
                middle, low, high = (f'{v:.{spec.digits}f}' for v in s[name])
                spread = f' [{low}, {high}]' if s['seeds'][_part(name) == 'val'] > 1 else ''
                cells.append((f'**{middle}**' if s[name][0] == best[name] else middle) + spread)
            tested, seeds = s['seeds']
            cells.append(str(seeds) if tested in (0, seeds) else f'{tested} test, {seeds} val')
            lines.append(f'| {model} | {" | ".join(cells)} | {s["params"][0] / 1e6:.2f} | {s["macs"][0] / 1e6:.1f} |'
                         + f' {s["cpu_seconds"][0]:.0f} |' * seconds)
        lines.append('')
    return '\n'.join(lines)


def verdict(rows: Iterable[dict[str, str]]) -> list[str]:
    """What the bars say, a sentence each; the first word is 'holds', 'fails' or 'open' (not all families have rows)."""
    summary, sentences, wins = summarise(rows), [], []
    for task, spec in TASKS.items():
        metric = _judged(summary, task)
        medians = {model: summary[model, task][metric][0] for model in MODELS if (model, task) in summary}
        low = [f'{model} {medians[model]:.{spec.digits}f}' for model in FAMILIES if model in medians and medians[model] < spec.bar]
        state = 'fails' if low else 'holds' if set(FAMILIES) <= set(medians) else 'open'
        sentences.append(f'{state}: {spec.title} on {_part(metric)}, of every family at least {spec.bar:g}'
                         + (f' ({", ".join(low)})' if low else ''))
        wins += [f'{model} in {task}' for model in FAMILIES if medians.get(model, -1) > medians.get(BASELINE, 1e9)]
    sentences.append(f'{"holds" if wins else "open"}: a family above {BASELINE} ({", ".join(wins) or "none so far"})')
    return sentences


def report(path: str | Path, page: str | Path, picture: str | Path | None, *, seconds: bool = True) -> list[str]:
    """Write the tables between the markers of a Markdown page (made if there is none) and draw quality against MACs if `picture` is given;
    gives `verdict`.

    Raises ValueError if there is no row, or if the page has no markers.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f'{path} has no rows; train some first')
    insert(table(rows, seconds), page, START, END)
    if picture is None:
        return verdict(rows)
    from vitzoo.viz.pareto import Point, draw_pareto
    summary, panels = summarise(rows), {}
    for task, spec in TASKS.items():
        metric = _judged(summary, task)
        points = [Point(model, summary[model, task]['macs'][0] / 1e6, *summary[model, task][metric])
                  for model in MODELS if (model, task) in summary]
        size = next((row['input'] for row in rows if row['task'] == task), None)
        if points:
            what = 'classifier' if task == 'classification' else 'backbone'
            panels[f'{spec.title}, {_part(metric)}', f'MACs of the {what} at {size}, M'] = points, spec.bar
    draw_pareto(panels, picture)
    return verdict(rows)
