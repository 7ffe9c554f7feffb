"""Measure, a row for each model, size and runtime; what is measured already is left alone."""
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import vitzoo
from vitzoo.profiling.bench import Case, Measured, bench, cpu_name
from vitzoo.profiling.exports import Exports
from vitzoo.profiling.published import published

from .. import rows as rows_of
from .plan import RUNTIMES

FIELDS = ('model', 'size', 'runtime', 'ms', 'lowest', 'highest', 'share', 'rounds', 'params', 'macs', 'file_mb', 'top1', 'top1_size',
          'top1_tag', 'top1_source', 'error', 'cpu', 'torch', 'timm', 'onnxruntime', 'vitzoo')
ROUNDS = {224: 7, 640: 3}  # of other sizes 5


def key(row: dict) -> tuple[str, int, str]:
    return row['model'], int(row['size']), row['runtime']


def read(path: str | Path) -> list[dict[str, str]]:
    return rows_of.read(path, FIELDS)


def measure(models: Sequence[str], sizes: Sequence[int], path: str | Path, cache: str | Path, *, rounds: int | None = None,
            again: bool = False, report: Callable[[str], object] = print) -> list[dict[str, str]]:
    """Add to the CSV what it lacks of these models and sizes, and return all of its rows.

    The runtimes of a model take turns, with a matrix product in each round: shares of it can be compared between models that were measured
    at different times. `again` tries what failed before once more.
    """
    done = {key(row) for row in read(path) if not (again and row['error'])}
    left = [(model, size) for size in sizes for model in models if any((model, size, how) not in done for how in RUNTIMES)]
    for i, (model, size) in enumerate(left):
        number = rounds or ROUNDS.get(size, 5)
        for row in measure_model(model, size, number, cache):
            rows_of.append(path, FIELDS, row, key)
            report(f'[{i + 1}/{len(left)}] {model} {size} {row["runtime"]}: ' + (row['error'] or f'{row["ms"]} ms, share {row["share"]}'))
    return read(path)


def export(models: Sequence[str], sizes: Sequence[int], cache: str | Path, *, report: Callable[[str], object] = print) -> None:
    """Make the files that `measure` will need, and time nothing."""
    exports = Exports(cache, derive=True)
    for model in models:
        for size in sizes:
            for precision in (precision for runtime, precision in RUNTIMES.values() if runtime == 'onnxruntime'):
                try:
                    report(str(exports.get(model, (size, size), precision=precision)))
                except Exception as e:  # of whatever models and exporters stumble over
                    report(f'{model} {size} {precision}: {type(e).__name__}: {" ".join(str(e).split())[:300]}')


def measure_model(model: str, size: int, rounds: int, cache: str | Path) -> list[dict]:
    """A row for each of `RUNTIMES`."""
    cases = [Case(model, (size, size), *RUNTIMES[how]) for how in RUNTIMES]
    try:
        found = bench(cases, batches=(1,), rounds=rounds, min_seconds=0.2, cache=Exports(cache, derive=True))
    except ValueError as e:  # the model does not take this size
        found = [Measured(case, error=str(e)) for case in cases]
    return [_row(result, how, rounds) for how, result in zip(RUNTIMES, found, strict=True)]


def _row(result: Measured, how: str, rounds: int) -> dict:
    known = published(result.case.model)
    numbers = dict(zip(('ms', 'lowest', 'highest'), (round(ms, 3) for ms in result.ms[1]), strict=True)) if result.ms else {}
    share = {'share': round(result.share[1], 4)} if result.share else {}
    accuracy = dict(top1=known.top1, top1_size=known.size, top1_tag=known.tag, top1_source=known.source) if known else {}
    file_mb = None if result.file_megabytes is None else round(result.file_megabytes, 1)
    versions = {name: version(name) for name in ('torch', 'timm', 'onnxruntime')}
    return {**dict.fromkeys(FIELDS, ''), **dict(
        model=result.case.model, size=result.case.size[0], runtime=how, **numbers, **share, rounds=rounds, params=result.params,
        macs=result.macs, file_mb=file_mb, **accuracy, error=result.error or '', cpu=cpu_name(), vitzoo=vitzoo.__version__, **versions)}


def compare(first: Sequence[dict], second: Sequence[dict]) -> dict[tuple[int, str], tuple[int, float]]:
    """How far two runs rank the models alike: (size, runtime) -> number of models in both, Spearman's rank correlation of latency.

    Latency is counted in matrix products of the same round, which stays the same where a machine is busy or throttled.
    Raises ValueError where the runs have fewer than three models in common.
    """
    from scipy.stats import spearmanr
    costs = [{key(row): float(row['macs']) / float(row['share']) for row in rows if row['share']} for rows in (first, second)]
    groups = {}
    for name in costs[0].keys() & costs[1].keys():
        groups.setdefault(name[1:], []).append([cost[name] for cost in costs])
    if not groups or min(map(len, groups.values())) < 3:
        raise ValueError('the two runs have too few models in common to compare their ranks: expected three for each size and runtime.')
    return {group: (len(pairs), float(spearmanr(*zip(*pairs, strict=True)).statistic)) for group, pairs in sorted(groups.items())}
