"""Say where the time of a model goes: by module and by operator in PyTorch, and by operator in its ONNX file.

MODEL is a registered name, of ours or timm's, or an ONNX file (.onnx). Weights are random: times do not depend on them. Multiply-adds are
those of "vitzoo info". Modules have CPU time of one thread; operators have wall time, as the runtimes' own profilers tell it, so that on a
busy machine their shares say more than their milliseconds.
"""
import argparse

from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import add_reduce, count, size
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument('--size', type=size, metavar='HxW', help="of the image (default: the model's own)")
    parser.add_argument('--batch', type=count, default=1, metavar='N', help='images at a time (default: %(default)s)')
    parser.add_argument('--depth', type=int, default=2, metavar='N', help='of modules inside modules (default: %(default)s)')
    parser.add_argument('--top', type=count, default=15, metavar='N', help='operators to print (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='of the timing (default: %(default)s)')
    parser.add_argument('--no-export', action='store_true', help='PyTorch alone')
    parser.add_argument('--cache', metavar='DIR', help='keep the exported file there, where the next run finds it')
    add_reduce(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    from vitzoo.profiling.bench import Case, profile_case
    if not 1 <= args.rounds <= 1000 or not 0 <= args.depth <= 20:
        raise ValueError(f'--rounds {args.rounds} --depth {args.depth}: expected 1 to 1000 rounds and a depth of 0 to 20')
    case = Case(args.model, args.size, 'onnxruntime' if args.model.endswith('.onnx') else 'eager', reduce=args.reduce)
    with output.bar('running', 2) as advance:
        found = profile_case(case, batch=args.batch, depth=args.depth, rounds=args.rounds, export=not args.no_export, cache=args.cache,
                             progress=advance)
    output.json({'model': args.model, 'size': list(found.case.size), 'batch': args.batch, 'macs': found.macs,
                 'runtimes': [breakdown.to_dict() for breakdown in found.breakdowns], 'notes': found.notes})
    for breakdown in found.breakdowns:
        title = f'{found.case.name} at {"x".join(map(str, found.case.size))}, batch {args.batch}, {breakdown.runtime}, one thread'
        if breakdown.modules:
            _print(f'{title}: modules, each with all that is inside', breakdown.modules, output)
        _print(f'{title}: kinds of operators', breakdown.kinds, output)
        _print(f'{title}: operators', breakdown.operators[:args.top], output)
    for note in found.notes:
        output.note(f'vitzoo: {note}')
    return 0


def _print(title: str, parts: list, output: Output) -> None:
    with_macs = any(part.macs is not None for part in parts)
    rows = [(part.name, f'{part.ms:.2f}', f'{part.share:.3f}', part.calls,
             *([f'{(part.macs or 0) / 1e9:.4f}', f'{(part.macs or 0) / part.ms / 1e6:.1f}'] if with_macs else [])) for part in parts]
    columns = ('name', 'ms', 'share', 'calls', *(('MACs, G', 'GMACs/s') if with_macs else ()))
    output.table(title, columns, rows, right=columns[1:])
