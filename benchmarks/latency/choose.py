"""The page about which model to take, from what was published and measured: python -m benchmarks.latency.choose --help"""
import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import timm
import yaml
from timm.models import get_arch_pretrained_cfgs

from vitzoo.profiling.counted import counted
from vitzoo.profiling.published import Published, published
from vitzoo.reduction import METHODS, Method
from vitzoo.viz.pareto import Point, draw_groups, pareto_front
from vitzoo_runtime.files import replacing

from .. import command
from .measure import read
from .plan import is_ours, ours
from .report import FILE, INT8, WORDS, listed, models_at, remarks

ROOT = Path(__file__).parents[2]
CSV = Path(__file__).with_name('results.csv')
YARDSTICK = 'deit_small_patch16_224'
RUNTIMES = ('eager', FILE, INT8)
# name of a head and schedule in the metafiles -> heading of its column
HEADS = {('RetinaNet', '12 epochs'): 'RetinaNet 1x, box AP', ('Mask R-CNN', '12 epochs'): 'Mask R-CNN 1x, box AP',
         ('Cascade Mask R-CNN', '36 epochs'): 'Cascade Mask R-CNN 3x, box AP', ('Semantic FPN', '80000 iterations'): 'Semantic FPN, mIoU',
         ('UPerNet', '160000 iterations'): 'UPerNet, mIoU'}
# column of the dense bench -> its task, what it is called, digits
MICRO = {'box_mAP50': ('detection', 'Mask R-CNN, box mAP50', 3), 'mIoU': ('segmentation', 'UPerNet, mIoU %', 1),
         'top1': ('classification', 'top-1 %', 1)}
PICTURES = {FILE: 'choose.png', INT8: 'choose_int8.png'}
LOSS = 1.  # points of accuracy below the plain model up to which a reduction counts as free


class Choice(NamedTuple):
    """A model at 224x224. `speed`: by size, then by runtime, the time of an image as a multiple of the yardstick's in PyTorch."""
    name: str
    known: Published | None
    params: int
    macs: int
    speed: dict[int, dict[str, float]]
    weights: str

    def __str__(self) -> str:
        return f'`{self.name}`'

    def point(self, runtime: str, size: int = 224) -> Point:
        return Point(self.name, self.speed[size][runtime], *[self.known.top1] * 3)


def costs() -> dict[str, tuple[int, int]]:
    """Parameters and multiply-adds of ours that were made for images of 224x224."""
    return {name: counted()[name][:2] for name in ours() if timm.get_pretrained_cfg(name).input_size[1] == 224}


def choices(rows: Sequence[dict[str, str]], costs: Mapping[str, tuple[int, int]]) -> list[Choice]:
    """Ours of `costs`, and timm's that were measured, by multiply-adds. Times of other CPUs than the yardstick's are left out.

    Raises ValueError if the yardstick was not timed.
    """
    cost, speed, found = dict(costs), {}, []
    for size in sorted({int(row['size']) for row in rows}):
        models = {model.name: model for model in models_at(rows, size)}
        if 'eager' not in getattr(models.get(YARDSTICK), 'ms', {}):
            raise ValueError(f'no time of {YARDSTICK} in PyTorch at {size}, of which the others are multiples; '
                             f'python -m benchmarks.latency --models {YARDSTICK} --sizes {size} measures it')
        yardstick = models[YARDSTICK]
        for model in models.values():
            if not is_ours(model.name):
                cost.setdefault(model.name, (model.params, model.macs))
            if model.row['cpu'] == yardstick.row['cpu']:
                speed.setdefault(model.name, {})[size] = {how: ms / yardstick.ms['eager'] for how, ms in model.ms.items()}
    for name, (params, macs) in cost.items():
        known = published(name)
        found.append(Choice(name, known, params, macs, speed.get(name, {}), weights_of(name, known.tag if known else '')))
    return sorted(found, key=lambda choice: (choice.macs, choice.name))


def weights_of(name: str, tag: str) -> str:
    """Whether a program can download the weights that have the accuracy."""
    cfgs = get_arch_pretrained_cfgs(name)
    cfg = cfgs.get(f'{name}.{tag}') or next(iter(cfgs.values()))
    return 'yes' if cfg.has_weights else 'by hand' if cfg.origin_url else 'none'


def timed(found: Iterable[Choice], runtime: str, size: int = 224) -> list[Choice]:
    """Those with an accuracy and a time, fastest first."""
    kept = [choice for choice in found if choice.known and runtime in choice.speed.get(size, {})]
    return sorted(kept, key=lambda choice: choice.speed[size][runtime])


def picks(found: Iterable[Choice], runtime: str, budgets: Iterable[float], size: int = 224) -> dict[float, Choice]:
    """Multiple of the yardstick's time -> the most accurate within it, where a larger one buys more than a smaller one."""
    kept, best = timed(found, runtime, size), {}
    for budget in budgets:
        within = [choice for choice in kept if choice.speed[size][runtime] <= budget]
        if within and (choice := max(within, key=lambda c: c.known.top1)) not in best.values():
            best[budget] = choice
    return best


def front(found: Iterable[Choice], runtime: str, size: int = 224) -> list[Choice]:
    """Those that no other beats in both accuracy and time, fastest first."""
    kept = timed(found, runtime, size)
    names = {point.name for point in pareto_front([choice.point(runtime, size) for choice in kept])}
    return [choice for choice in kept if choice.name in names]


def better(choice: Choice, found: Iterable[Choice], runtime: str, size: int = 224) -> Choice | None:
    """The fastest other one that is at least as accurate and takes no longer."""
    return next((other for other in timed(found, runtime, size) if other is not choice and other.known.top1 >= choice.known.top1
                 and other.speed[size][runtime] <= choice.speed[size][runtime]), None)


# ---- tables

def table(found: Sequence[Choice], links: dict[str, int]) -> str:
    """Ours, and of timm's the yardstick and those that nothing beats in one of the runtimes."""
    strongest = {choice.name for runtime in RUNTIMES for choice in front(found, runtime)} | {YARDSTICK}
    lines = ['| model | top-1 % | params, M | GMACs | PyTorch | ONNX Runtime | int8 | weights |', '| --- |' + ' ---: |' * 6 + ' --- |']
    for choice in found:
        if is_ours(choice.name) or choice.name in strongest:
            name = f'**{choice}**' if is_ours(choice.name) else str(choice)
            times = [_number(choice.speed.get(224, {}).get(runtime)) for runtime in RUNTIMES]
            cells = [name, _accuracy(choice.known, links), f'{choice.params / 1e6:.1f}', f'{choice.macs / 1e9:.2f}', *times, choice.weights]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _accuracy(known: Published | None, links: dict[str, int]) -> str:
    if known is None:
        return '-'
    words = remarks(known.size, known.tag)
    return _linked(known.top1, known.source, links) + (f' ({", ".join(words)})' if words else '')


def _linked(value: float, source: str, links: dict[str, int]) -> str:
    """A number that links to its source, by a reference that `links` gets."""
    return f'[{value:.1f}][{links.setdefault(source, len(links) + 1)}]'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def published_dense() -> dict[str, dict[tuple[str, str], tuple[float, str]]]:
    """Model -> (head, schedule) -> (box AP or mIoU, source), of the metafiles beside the configs."""
    found = {}
    for file in sorted((ROOT / 'configs' / 'metafiles').glob('*.yml')):
        for entry in yaml.safe_load(file.read_text(encoding='utf-8'))['Models']:
            facts = entry['Metadata']
            if 'Results' in entry and (head := (facts['Head'], facts['Schedule'])) in HEADS:
                value = next(iter(entry['Results'][0]['Metrics'].values()))
                found.setdefault(facts['Backbone'], {})[head] = value, entry['Source']
    return found


def dense_table(links: dict[str, int]) -> str:
    lines = [f'| model | {" | ".join(HEADS.values())} |', '| --- |' + ' ---: |' * len(HEADS)]
    for name, results in published_dense().items():
        cells = [_linked(*results[head], links) if head in results else '-' for head in HEADS]
        lines.append(f'| `{name}` | {" | ".join(cells)} |')
    return '\n'.join(lines)


def medians() -> dict[str, dict[str, float]]:
    """Model -> column of `MICRO`, and MACs on a scene in millions, in the dense bench: medians over the seeds on the test part."""
    found = {}
    for row in _rows(ROOT / 'benchmarks' / 'dense' / 'results.csv'):
        for column, (task, *_) in MICRO.items():
            if row['task'] == task and row[f'test_{column}']:
                found.setdefault(row['model'], {}).setdefault(column, []).append(float(row[f'test_{column}']))
        if row['task'] != 'classification':
            found.setdefault(row['model'], {}).setdefault('macs', []).append(int(row['macs']) / 1e6)
    return {model: {column: median(values) for column, values in columns.items()} for model, columns in sorted(found.items())}


def micro_table() -> str:
    digits = {'macs': 0, **{column: digits for column, (_, _, digits) in MICRO.items()}}
    titles = ['model', 'MACs on a scene, M', *(title for _, title, _ in MICRO.values())]
    lines = [f'| {" | ".join(titles)} |', '| --- |' + ' ---: |' * len(digits)]
    for model, values in medians().items():
        cells = [f'{values[column]:.{digits[column]}f}' if column in values else '-' for column in digits]
        lines.append(f'| `{model}` | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


# ---- three sentences a need

def for_servers(found: Sequence[Choice]) -> list[str]:
    """Classification on a server's CPU, as an ONNX file in float32."""
    known = [c for c in found if is_ours(c.name) and c.known]
    untimed = sorted((c for c in known if FILE not in c.speed.get(224, {})), key=lambda c: -c.known.top1)
    return [f'Exported in float32, {_best(found, FILE, (.25, .5, 1, 2))}', _ours_against(found, FILE),
            f'Of {len(known)} models of ours with a published accuracy {len(untimed)} have no time yet and are not judged, of which '
            f'{_with_accuracy(untimed[:1])} is the most accurate.' if untimed else 'All of ours with a published accuracy were timed.']


def for_edges(found: Sequence[Choice]) -> list[str]:
    """Edge devices with 8-bit instructions."""
    return [f'Exported in 8 bits, {_best(found, INT8, (.125, .25, .5, 1))}', _ours_against(found, INT8),
            'Times are those of the same server, and accuracies those of float32: measure your own file on your device and images '
            '([from config to device](deploy.md)), and try `--precision int8-static` for models made of convolutions, which the figures '
            'here leave in float32 ([8 bits](export.md#8-and-16-bits)).']


def for_dense(found: Sequence[Choice]) -> list[str]:
    """Detection and segmentation."""
    micro, results, head = medians(), published_dense(), ('Mask R-CNN', '12 epochs')
    box, mask = (max(micro, key=lambda model, c=column: micro[model].get(c, -1)) for column in ('box_mAP50', 'mIoU'))
    first = max((results[name][head][0], name) for name in results if head in results[name] and is_ours(name))
    return [f'Of what was published for our families with Mask R-CNN in twelve epochs, {first[0]:.1f} box AP of `{first[1]}` are the most; '
            'a [table below](#detection-and-segmentation-as-published) has the rest.',
            f'Trained here, from scratch and at equal budget on digit scenes, `{box}` leads in detection '
            f'({micro[box]["box_mAP50"]:.3f} box mAP50) and `{mask}` in segmentation ({micro[mask]["mIoU"]:.1f} mIoU), and a small ResNet '
            f'of timm\'s reaches {micro["timm_resnet"]["box_mAP50"]:.3f} and {micro["timm_resnet"]["mIoU"]:.1f}, which says how fast small '
            'models learn and not how pretrained ones rank.',
            f'By the accuracy of classifiers and the time of a float32 file at 640x640, {_best(found, FILE, (.25, .5, 1, 2), 640)}']


def for_own_vits() -> list[str]:
    """A ViT that is there, and is to be cheaper."""
    study, times = {}, {}
    for row in _rows(ROOT / 'benchmarks' / 'reduction' / 'results.csv'):
        study.setdefault(row['setting'], []).append(row)
    top1 = {setting: {kind: median(float(row[kind]) for row in rows if row[kind]) for kind in ('accuracy', 'tuned_accuracy')
                      if any(row[kind] for row in rows)} for setting, rows in study.items()}
    plain, whole = top1['plain'], int(study['plain'][0]['macs'])

    def cheapest(kind: str) -> str:
        settings = [s for s in top1 if kind in top1[s] and top1[s][kind] >= plain[kind] - LOSS and (kind != 'accuracy' or not _learns(s))]
        setting = min(settings, key=lambda s: int(study[s][0]['macs']))
        return f'`{setting}` ({_percent(int(study[setting][0]["macs"]) / whole)} of the multiply-adds, {top1[setting][kind]:.1f} %)'
    for row in _rows(ROOT / 'benchmarks' / 'reduction' / 'latency.csv'):
        times.setdefault(row['case'], {})[row['setting']] = float(row['ratio'])
    setting = 'tome r=13'
    return [f'In the study on digit crops, of a plain model with {plain["accuracy"]:.1f} %, the cheapest setting within a point of it is '
            f'{cheapest("accuracy")} as it comes, and {cheapest("tuned_accuracy")} after some fine-tuning.',
            f'What that is worth in time depends on the image: `{setting}` takes DeiT-S at 224x224 to '
            f'{_percent(times["224x1"][setting])} of its time for one image, {_percent(times["224x8"][setting])} for eight and '
            f'{_percent(times["224x1 onnx"][setting])} in ONNX Runtime, and at 96x96 to {_percent(times["96x1"][setting])}.',
            '`vitzoo compare-reduction MODEL photos/` measures all methods on your model and images before you decide '
            '([token reduction](reduction.md)), and detectors get the full grid back ([ViTs as backbones](vit_backbones.md)).']


def for_weights(found: Sequence[Choice]) -> list[str]:
    """Weights that a program can download."""
    own = sorted((c for c in found if is_ours(c.name) and c.known), key=lambda c: -c.known.top1)
    ready, by_hand = [c for c in own if c.weights == 'yes'], [c for c in own if c.weights == 'by hand']
    best = max((c for c in timed(found, FILE) if c.weights == 'yes'), key=lambda c: c.known.top1)
    return [f'Of ours, `pretrained=True` downloads {_with_accuracy(ready)}.',
            f'Those of {_with_accuracy(by_hand[:3])}, and of {len(by_hand[3:])} others, are fetched from a share by hand and then load '
            'from the file (`vitzoo info MODEL` says from where); of the rest there are none.',
            f'Of all that was timed here, {_with_accuracy([best])} is the most accurate that a program can download, and timm has larger '
            'ones and such of larger data sets, which this page leaves out.']


def _best(found: Sequence[Choice], runtime: str, budgets: Iterable[float], size: int = 224) -> str:
    """The most accurate within parts and multiples of the yardstick's time in PyTorch."""
    words = {.125: 'an eighth', .25: 'a quarter', .5: 'half', 1: 'all', 2: 'twice'}
    unit = " of DeiT-S's time in PyTorch take"
    return 'within ' + ', within '.join(
        f'{words[budget]}{unit if i == 0 else ""} {_with_accuracy([choice])}'
        for i, (budget, choice) in enumerate(picks(found, runtime, budgets, size).items())) + '.'


def _ours_against(found: Sequence[Choice], runtime: str) -> str:
    """Which of ours nothing beats, and what beats the others."""
    own, ahead = [c for c in timed(found, runtime) if is_ours(c.name)], {c.name for c in front(found, runtime)}
    beaten = {}
    for choice in own:
        if choice.name not in ahead:
            beaten.setdefault(better(choice, found, runtime).name, []).append(choice)
    there = [c for c in own if c.name in ahead]
    return (f'Of ours, nothing measured is both faster and as accurate as {_with_accuracy(there)}' if there else
            'Each of ours is beaten in both by another model') + ''.join(
        f'; `{name}` ({published(name).top1:.1f} %) beats {_with_accuracy(choices)}' for name, choices in beaten.items()) + '.'


def _with_accuracy(choices: Iterable[Choice]) -> str:
    return listed(f'{choice} ({choice.known.top1:.1f} %)' for choice in choices)


def _percent(share: float) -> str:
    return f'{share:.0%}'.replace('%', ' %')


def _learns(setting: str) -> bool:
    """Whether the method brings parameters that somebody has to train first."""
    return METHODS[setting.split()[0]].attach is not Method.attach if setting != 'plain' else False


# ---- the page

NEEDS = {'Classification on a server\'s CPU': for_servers, 'An edge device, in 8 bits': for_edges, 'Detection and segmentation': for_dense,
         'A ViT that you have, cheaper': lambda found: for_own_vits(), 'Weights, now': for_weights}


def page(found: Sequence[Choice], rows: Sequence[dict[str, str]]) -> str:
    """The whole page in Markdown."""
    about = next(row for row in rows if row['model'] == YARDSTICK)
    links = {}
    parts = [
        '# Which model to take',
        'Ours beside the strongest of timm, which are better for many needs; where they are, this page says so. '
        '`python -m benchmarks.latency.choose` writes it, from published accuracies (`vitzoo/profiling/published.csv`) and from what was '
        'measured here ([latency](latency.md), [dense bench](bench_dense.md), [token reduction](reduction.md)). Times are those of one '
        f'image and one thread of {about["cpu"]}, as multiples of the time of DeiT-S (`{YARDSTICK}`) in PyTorch: 0.50 takes half as long.']
    for title, sentences in NEEDS.items():
        parts += [f'## {title}', '\n'.join(f'- {sentence}' for sentence in sentences(found))]
    parts += [
        '## All of ours, and timm\'s strongest',
        f'At 224x224, by multiply-adds; ours are bold. Of timm\'s models, `{YARDSTICK}` and those that nothing measured beats in both '
        'accuracy and time, in one of the three runtimes; [latency](latency.md) has the others, and milliseconds. An accuracy links to its '
        'source: ImageNet-1k alone, at 224 unless said. "-": not published of this model or, of times, not measured yet. Weights: "yes" '
        'if `pretrained=True` downloads those with this accuracy.',
        table(found, links),
        *(f'![Published accuracy against time, {WORDS[runtime]}]({picture})' for runtime, picture in PICTURES.items()),
        '## Detection and segmentation, as published',
        'On COCO and ADE20K, by the authors, for their code and weights; each number links to its source. [Configs](configs.md) has these '
        'recipes for all families. None was trained here.', dense_table(links),
        '## Detection and segmentation, from scratch at equal budget',
        'Medians over the seeds on the test part of the digit scenes. [The bench](bench_dense.md) has the spread, the validation part, on '
        'which the recipes were chosen, and what is not claimed.', micro_table(),
        '\n'.join(f'[{number}]: {source}' for source, number in links.items())]
    return '\n\n'.join(parts) + '\n'


def report(path: str | Path) -> None:
    """Write the page, and its pictures beside it. Raises ValueError where a measurement is missing that all are compared with."""
    path, rows = Path(path), read(CSV)
    found = choices(rows, costs())
    for runtime, picture in PICTURES.items():
        known = timed(found, runtime)
        groups = {whose: [choice.point(runtime) for choice in known if is_ours(choice.name) == (whose == 'vitzoo')]
                  for whose in ('vitzoo', 'timm')}
        draw_groups(groups, path.with_name(picture), cost='time of an image, DeiT-S in PyTorch = 1',
                    quality='published top-1 on ImageNet-1k, %', title=f'{WORDS[runtime]}, 224x224, one thread')
    with replacing(path) as temporary:
        temporary.write_text(page(found, rows), encoding='utf-8')


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.latency.choose', description='Write the page and its pictures.')
    parser.add_argument('--page', default='docs/choose.md', metavar='FILE', help='default: %(default)s')
    args = parser.parse_args()
    report(args.page)


if __name__ == '__main__':
    sys.exit(main())
