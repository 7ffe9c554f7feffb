"""The page about latency and its two pictures, from the rows: python -m benchmarks.latency.report --help"""
import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vitzoo.viz.pareto import Point, draw_groups, pareto_front
from vitzoo_runtime.files import replacing

from .. import command
from .measure import read
from .plan import RUNTIMES, is_ours

FILE, INT8 = 'onnxruntime', 'onnxruntime int8'
WORDS = {'eager': 'PyTorch', FILE: 'ONNX Runtime', INT8: 'ONNX Runtime, int8'}
BUDGETS = (5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)  # ms
GAIN, LOSS = 1.3, 0.95  # speed of int8 as a multiple of that of float32, from which and below which it is worth a mention


class Model(NamedTuple):
    """A model at one size: ms and share of the matrix product's speed by runtime, where they were measured."""
    name: str
    top1: float | None
    params: int
    macs: int
    ms: dict[str, float]
    share: dict[str, float]
    row: dict[str, str]

    def __str__(self) -> str:
        return f'`{self.name}`'

    @property
    def figures(self) -> str:
        return f'{self.top1:.1f} % in {_ms(self.ms[FILE])}'


def models_at(rows: Sequence[dict[str, str]], size: int) -> list[Model]:
    """By time in ONNX Runtime, fastest first; those that have none at the end."""
    groups = {}
    for row in rows:
        if int(row['size']) == size:
            groups.setdefault(row['model'], {})[row['runtime']] = row
    found = []
    for name, by_runtime in groups.items():
        row = next((row for row in by_runtime.values() if row['macs']), next(iter(by_runtime.values())))
        timed = {runtime: row for runtime, row in by_runtime.items() if row['ms']}
        found.append(Model(
            name, float(row['top1']) if row['top1'] else None, int(row['params'] or 0), int(row['macs'] or 0),
            {runtime: float(row['ms']) for runtime, row in timed.items()}, {runtime: float(row['share']) for runtime, row in timed.items()},
            row))
    return sorted(found, key=lambda model: (model.ms.get(FILE, float('inf')), model.name))


def table(rows: Sequence[dict[str, str]]) -> str:
    """All models, by time at the smallest size; a column for each size and runtime."""
    sizes = sorted({int(row['size']) for row in rows})
    at = {size: {model.name: model for model in models_at(rows, size)} for size in sizes}
    names = list(dict.fromkeys(name for size in sizes for name in at[size]))
    sources = _sources(rows)
    runtimes = [(size, runtime) for size in sizes for runtime in RUNTIMES]
    lines = ['| model | top-1 % | params, M | ' + ' | '.join(
        [f'GMACs at {size}' for size in sizes] + [f'{size}: {WORDS[runtime]}, ms' for size, runtime in runtimes]) + ' |',
        '| --- | ---: | ---: |' + ' ---: |' * (len(sizes) + len(runtimes))]
    for name in names:
        any_size = next(at[size][name] for size in sizes if name in at[size])
        accuracy = '' if any_size.top1 is None else f'{any_size.top1:.1f}' + _remark(any_size.row, sources)
        macs = [f'{at[size][name].macs / 1e9:.2f}' if name in at[size] and at[size][name].macs else '' for size in sizes]
        cells = [_cell(at[size].get(name), runtime) for size, runtime in runtimes]
        word = f'**`{name}`**' if is_ours(name) else f'`{name}`'
        lines.append('| ' + ' | '.join([word, accuracy, f'{any_size.params / 1e6:.1f}', *macs, *cells]) + ' |')
    return '\n'.join(lines)


def _cell(model: Model | None, runtime: str) -> str:
    if model is None or runtime not in model.ms:
        return '-'
    return f'{_number(model.ms[runtime])} ({model.share[runtime]:.2f})'


def _number(ms: float) -> str:
    return f'{ms:.1f}' if ms < 100 else f'{ms:.0f}'


def _ms(ms: float) -> str:
    return f'{_number(ms)} ms'


def _sources(rows: Sequence[dict[str, str]]) -> dict[str, int]:
    return {source: i + 1 for i, source in enumerate(sorted({row['top1_source'] for row in rows} - {''}))}


def _remark(row: dict[str, str], sources: dict[str, int]) -> str:
    """Where an accuracy is from, and what else is to be known of it."""
    words = [f'[{sources[row["top1_source"]]}]', *remarks(row['top1_size'], row['top1_tag'])]
    return f' ({", ".join(words)})'


def remarks(size: int | str, tag: str) -> list[str]:
    """Whether an accuracy is one at another size, or of weights that learnt from more than the labels of classes."""
    known = {f'at {size}': str(size) != '224', 'distilled': 'dist' in tag, 'token labels': tag == 'token_labels'}
    return [remark for remark, holds in known.items() if holds]


def advice(rows: Sequence[dict[str, str]], size: int) -> list[str]:
    """In words, which model to take for which need, and where ours stand, by the exported file in float32."""
    models = [model for model in models_at(rows, size) if FILE in model.ms]
    known = [model for model in models if model.top1 is not None]
    lines, last = [], None
    for budget in BUDGETS:
        within = [model for model in known if model.ms[FILE] <= budget]
        best = max(within, key=lambda model: (model.top1, -model.ms[FILE]), default=None)
        if best and best is not last:
            lines.append(f'Up to {budget} ms an image: {best} ({best.figures}).')
            last = best
    front = {point.name for point in pareto_front(_points(known))}
    own = [model for model in known if is_ours(model.name)]
    ahead, behind = [m for m in own if m.name in front], [m for m in own if m.name not in front]
    if ahead:
        lines.append(f'Of ours, nothing measured here is both as fast and as accurate as {listed(ahead)}.')
    for model in behind:
        better = [m for m in known if m.top1 >= model.top1 and m.ms[FILE] <= model.ms[FILE] and m is not model]
        best = max(better, key=lambda m: (m.top1, -m.ms[FILE]))
        quickest = min(better, key=lambda m: m.ms[FILE])
        others = f'; {quickest} is the fastest that is as accurate ({quickest.figures})' if quickest is not best else ''
        lines.append(f'Instead of {model} ({model.figures}) take {best} ({best.figures}){others}.')
    unknown = [model for model in models if model.top1 is None and is_ours(model.name)]
    if unknown:
        lines.append(f'Nobody has published an accuracy of {listed(unknown)}: what they are good for has to be found out by training them.')
    gains = sorted(((m.ms[FILE] / m.ms[INT8], m) for m in models if INT8 in m.ms), key=lambda pair: -pair[0])
    if gains:
        most = [f'{m} ({gain:.2f}x)' for gain, m in gains[:5] if gain >= GAIN]
        none = [m for gain, m in gains if gain < LOSS]
        if most:
            lines.append(f'int8 of matrix products pays most in {", ".join(most)}; its accuracy is to be measured on your own data.')
        if none:
            lines.append(f'int8 makes {listed(none)} slower: convolutions stay in float32, and to quantise the rest at run time costs more '
                         'than it saves.')
    closest = sorted(models, key=lambda m: -m.share[FILE])[:5]
    if closest:
        lines.append('Nearest to the speed of a plain matrix product are ' + ', '.join(f'{m} ({m.share[FILE]:.2f})' for m in closest) + '.')
    return lines


def _points(models: Sequence[Model]) -> list[Point]:
    return [Point(model.name, model.ms[FILE], model.top1, model.top1, model.top1) for model in models]


def listed(things: Iterable[object]) -> str:
    """In words: a, b and c."""
    words = [str(thing) for thing in things]
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'


def page(rows: Sequence[dict[str, str]], pictures: dict[int, str]) -> str:
    """The whole page in Markdown; `pictures`: size -> file name."""
    sizes = sorted({int(row['size']) for row in rows})
    about = next(row for row in rows)
    cpus = sorted({row['cpu'] for row in rows})
    parts = [
        '---\nhide: [toc]\n---',  # leaves room for the table
        '# Latency on a CPU',
        f'{len({row["model"] for row in rows})} models, ours (bold) and those of timm that are strong on a CPU, one image and one thread, '
        f'measured on {" and ".join(cpus)}, with torch {about["torch"]}, timm {about["timm"]}, onnxruntime {about["onnxruntime"]}. '
        '`python -m benchmarks.latency` measures on your machine and writes `benchmarks/latency/results.csv`, of which '
        '`python -m benchmarks.latency.report` makes this page; models that beat ours stay in.',
        'Milliseconds are CPU time, medians over rounds in which the three ways to run a model take turns. In brackets is the share of the '
        'speed of a 768x768 matrix product in the same round, by multiply-adds (`vitzoo.profile`): it holds on a busy machine, too, where '
        'milliseconds of models measured at different times may differ for that alone. Models '
        'of PyTorch are reparameterised where they can be; files are what `vitzoo.export_onnx` writes, compared with PyTorch; in int8 '
        'matrix products are, and convolutions stay in float32. Weights are random. Accuracies are published ones on '
        'ImageNet-1k, at 224 unless said, by training on it alone; where none is given, none is known to us.']
    for size in sizes:
        parts += [f'## Which to take at {size}x{size}',
                  *(['Accuracy is what was published for classification at its own size: here it ranks backbones for dense tasks, no more.']
                    if size > 384 else []),
                  '\n'.join(f'- {line}' for line in advice(rows, size)),
                  f'![Published accuracy against latency in ONNX Runtime at {size}x{size}]({pictures[size]})']
    parts += ['## All figures', table(rows)]
    failed = {}
    for row in rows:
        if row['error']:
            failed.setdefault((row['model'], row['error']), []).append(f'{WORDS[row["runtime"]]} at {row["size"]}')
    if failed:
        parts += ['## Not measured', '\n'.join(f'- `{model}`, {"; ".join(where)}: {error}' for (model, error), where in failed.items())]
    parts += ['## Sources of the accuracies', '\n'.join(f'{number}. <{source}>' for source, number in _sources(rows).items())]
    return '\n\n'.join(parts) + '\n'


def report(rows: Sequence[dict[str, str]], path: str | Path) -> None:
    """Write the page, and beside it a picture for each size. Raises ValueError if there is no row."""
    if not rows:
        raise ValueError('no rows yet; run python -m benchmarks.latency first')
    path, pictures = Path(path), {}
    for size in sorted({int(row['size']) for row in rows}):
        known = [model for model in models_at(rows, size) if FILE in model.ms and model.top1 is not None]
        groups = {'vitzoo': [m for m in known if is_ours(m.name)], 'timm': [m for m in known if not is_ours(m.name)]}
        pictures[size] = f'{path.stem}_{size}.png'
        draw_groups({name: _points(group) for name, group in groups.items()}, path.with_name(pictures[size]),
                    cost='ms an image, ONNX Runtime, one thread', quality='published top-1 on ImageNet-1k, %', title=f'{size}x{size}')
    with replacing(path) as temporary:
        temporary.write_text(page(rows, pictures), encoding='utf-8')


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.latency.report', description='Write the page and its pictures.')
    parser.add_argument('--csv', default='benchmarks/latency/results.csv', metavar='FILE', help='default: %(default)s')
    parser.add_argument('--page', default='docs/latency.md', metavar='FILE', help='default: %(default)s')
    args = parser.parse_args()
    report(read(args.csv), args.page)


if __name__ == '__main__':
    sys.exit(main())
