"""Where token reduction pays: CPU time of one thread against the plain model, by size and batch, in PyTorch and in ONNX Runtime.

    python -m benchmarks.reduction.latency            # all cases, DeiT-S; about 20 minutes alone on a machine
    python -m benchmarks.reduction.latency --cases 224x1 --rounds 9

Models take turns in one process; a figure is the median over rounds of the ratio within a round. Random weights: times do not depend on
them.
"""
import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

import vitzoo
from vitzoo.profiling import count_macs, on_meta, take_turns
from vitzoo.profiling.bench import cpu_name
from vitzoo.reduction import Setting

from .. import command
from .. import rows as rows_of
from ..pages import around, insert

MODEL = 'deit_small_patch16_224'
START, END = '<!-- timings -->', '<!-- end of timings -->'
FIELDS = ('model', 'case', 'setting', 'macs', 'share', 'ratio', 'lowest', 'highest', 'cpu')


class LastMap(nn.Module):
    """The last map at full resolution, after the final norm: what a dense head gets."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]


def settings(num_patches: int) -> list[Setting]:
    """As published for 196 patches; numbers of tokens grow with the number of patches."""
    def scaled(n: int) -> int:
        return max(min(n, 1), round(n * num_patches / 196))
    side = round(num_patches ** 0.5 / 2)
    return [
        Setting('evit', {'keep_rate': 1.}), Setting('evit', {'keep_rate': 0.7}), Setting('evit', {'keep_rate': 0.5}),
        Setting('tome', {'r': 0}), Setting('tome', {'r': scaled(8)}), Setting('tome', {'r': scaled(13)}),
        Setting('gtp', {'num_prop': 0}), Setting('gtp', {'num_prop': scaled(8)}),
        Setting('dynamicvit', {'keep_rate': 0.7}),
        Setting('select', {'location': 3, 'keep': 0.5}),
        Setting('expedite', {'location': 3, 'clusters': (side, side)}),
    ]


LABELS = [str(setting) for setting in settings(196)]


def measure(case: str, methods: list[str], rounds: int, seconds: float, report: Callable[[str], None]) -> list[dict]:
    """Rows of a case: 'SIZExBATCH', with ' dense' for the last map and ' onnx' for the exported file."""
    size, batch = map(int, case.split()[0].split('x'))
    dense, exported = 'dense' in case, 'onnx' in case
    torch.manual_seed(0)
    plain = timm.create_model(MODEL, img_size=size).eval()
    models = {'plain': plain}
    for label, setting in zip(LABELS, settings((size // 16) ** 2), strict=True):
        if methods and setting.method not in methods or dense and label.split()[0] not in ('expedite', 'tome', 'evit'):
            continue
        model = timm.create_model(MODEL, img_size=size).eval()
        for name, p in plain.named_parameters():  # one memory for all weights: where it lies takes part in what a batch of one costs
            model.get_parameter(name).data = p.data
        models[label] = vitzoo.reduce_tokens(model, setting.method, **setting.options)
    models = {name: LastMap(model) if dense else model for name, model in models.items()}
    image = torch.randn(batch, 3, size, size)
    shape = torch.empty(1, 3, size, size, device='meta')
    macs = {name: count_macs(on_meta(model), shape) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls = {}
        for name, model in models.items():
            calls[name] = _session(model, image, Path(folder) / 'model.onnx') if exported else (lambda m=model: m(image))
        timings = take_turns(calls, rounds=rounds, min_seconds=seconds)
    rows = []
    for name in models:
        ratios = sorted(own / base for own, base in zip(timings.cpu[name], timings.cpu['plain'], strict=True))
        share, ratio, lowest, highest = (
            round(x, 3) for x in (macs[name] / macs['plain'], ratios[len(ratios) // 2], ratios[0], ratios[-1]))
        rows.append(dict(model=MODEL, case=case, setting=name, macs=macs[name], share=share, ratio=ratio, lowest=lowest, highest=highest,
                         cpu=cpu_name()))
        report(f'{case:16} {name:36} share {share:.3f}  time {ratio:.3f} [{lowest:.3f}, {highest:.3f}]')
    return rows


def _session(model: nn.Module, image: torch.Tensor, path: Path) -> Callable[[], object]:
    from vitzoo.export.verify import open_session
    with torch.inference_mode(False):
        vitzoo.export_onnx(model, path, tuple(image.shape[1:]), rounds=0)
    session = open_session(str(path))
    path.unlink()
    feed = {'image': image.numpy()}
    return lambda: session.run(None, feed)


CASES = ('224x1', '224x8', '96x1', '384x1', '224x1 dense', '224x8 dense', '224x1 onnx', '512x1 dense onnx')


def table(rows: list[dict]) -> str:
    """Settings down, cases across: time as a share of the plain model's."""
    cases = [case for case in CASES if any(row['case'] == case for row in rows)]
    cells = {(row['setting'], row['case']): row for row in rows}
    lines = ['| setting at 224 | share of MACs | ' + ' | '.join(cases) + ' |', '| --- | ---: |' + ' ---: |' * len(cases)]
    for label in LABELS:
        share = next((f'{float(cells[label, case]["share"]):.2f}' for case in cases if (label, case) in cells), '')
        values = [f'{float(cells[label, case]["ratio"]):.2f}' if (label, case) in cells else '' for case in cases]
        lines.append(f'| `{label}` | {share} | ' + ' | '.join(values) + ' |')
    return '\n'.join(lines)


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.reduction.latency', description=__doc__.splitlines()[0])
    parser.add_argument('--cases', nargs='+', default=CASES, help='some of: %(default)s')
    parser.add_argument('--methods', nargs='+', default=[], metavar='METHOD')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--seconds', type=float, default=0.3, help='of each timing (default: %(default)s)')
    parser.add_argument('--csv', default='benchmarks/reduction/latency.csv')
    parser.add_argument('--page', default='docs/reduction.md', help='the table goes between its markers')
    args = parser.parse_args()
    path = Path(args.csv)
    around(args.page, START, END)  # minutes before it is written
    for case in args.cases:
        new = measure(case, args.methods, args.rounds, args.seconds, lambda line: print(line, flush=True))
        keys = {(row['case'], row['setting']) for row in new}
        old = [row for row in rows_of.read(path, FIELDS) if (row['case'], row['setting']) not in keys]
        rows = sorted([*old, *new], key=lambda row: CASES.index(row['case']))
        rows_of.write(path, FIELDS, rows)
        insert(table(rows), args.page, START, END)


if __name__ == '__main__':
    sys.exit(main())
