"""Latency on a CPU of our models and of timm's: python -m benchmarks.latency --help"""
import argparse
import fnmatch
import sys

from .. import command

LEAST = 0.98  # rank correlation of two runs


@command
def main() -> int | None:
    from .measure import compare, export, measure, read
    from .plan import SIZES, models
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.latency',
        description='Measure latency, one thread and one image, in PyTorch and ONNX Runtime; finished rows are skipped. About 35 minutes '
                    'of CPU time for all, and an hour to export the files, which the next run finds in --cache.')
    parser.add_argument('--models', nargs='+', default=['*'], metavar='PATTERN', help='some of the models (default: all)')
    parser.add_argument('--sizes', nargs='+', type=int, default=SIZES, metavar='SIZE', help='default: 224 640')
    parser.add_argument('--rounds', type=int, metavar='N', help='figures for each median (default: 7 at 224, 3 at 640)')
    parser.add_argument('--out', default='benchmarks/latency/results.csv', metavar='FILE.csv', help='rows (default: %(default)s)')
    parser.add_argument('--cache', default='runs/latency', metavar='DIR', help='exported files (default: %(default)s)')
    parser.add_argument('--again', action='store_true', help='try what failed in an earlier run')
    parser.add_argument('--export-only', action='store_true', help='make the files, time nothing')
    parser.add_argument('--second', metavar='FILE.csv', help='measure nothing: compare the ranks of --out with those of this other run')
    args = parser.parse_args()
    if args.second:
        found = compare(read(args.out), read(args.second))
        for (size, runtime), (count, rank) in found.items():
            print(f'{size}, {runtime}: {count} models, rank correlation {rank:.4f}')
        return 0 if min(rank for _, rank in found.values()) >= LEAST else 1
    names = [name for name in models() if any(fnmatch.fnmatchcase(name, pattern) for pattern in args.models)]
    if not names:
        raise ValueError(f'--models {" ".join(args.models)}: none of the {len(models())} models matches')
    if args.export_only:
        export(names, args.sizes, args.cache, report=lambda line: print(line, flush=True))
        return 0
    measure(names, args.sizes, args.out, args.cache, rounds=args.rounds, again=args.again,
            report=lambda line: print(line, flush=True))


if __name__ == '__main__':
    sys.exit(main())
