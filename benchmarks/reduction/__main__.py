"""Accuracy against multiply-adds of reduced tokens on digit crops: make bench-reduction, or python -m benchmarks.reduction --help"""
import argparse
import sys

from .. import command


@command
def main() -> None:
    import torch

    from vitzoo.reduction import METHODS

    from ..pages import around
    from .report import END, START, report
    from .study import ITERATIONS, TUNING, read_rows, run
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.reduction',
        description='Train a small ViT on digit crops, reduce its tokens by each method, evaluate, fine-tune; finished rows are skipped.')
    parser.add_argument('--methods', nargs='+', default=[], metavar='METHOD', help=f'some of {", ".join(METHODS)}; default all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='SEED', help='default 0 1 2')
    parser.add_argument('--csv', default='benchmarks/reduction/results.csv', help='rows (default: %(default)s)')
    parser.add_argument('--page', default='docs/reduction.md', help='the table goes between its markers (default: %(default)s)')
    parser.add_argument('--picture', default='docs/reduction.png', help='plot (default: %(default)s)')
    parser.add_argument('--out', default='runs/bench_reduction', help='data and weights (default: %(default)s)')
    parser.add_argument('--iterations', type=int, default=ITERATIONS, help='of training (default: %(default)s)')
    parser.add_argument('--tuning', type=int, default=TUNING, help='iterations of fine-tuning (default: %(default)s)')
    parser.add_argument('--report-only', action='store_true', help='train nothing')
    args = parser.parse_args()
    around(args.page, START, END)  # an hour before it is written
    torch.set_num_threads(1)
    rows = read_rows(args.csv) if args.report_only else run(
        args.methods, args.seeds, args.csv, args.out, iterations=args.iterations, tuning=args.tuning)
    report(rows, args.page, args.picture)


if __name__ == '__main__':
    sys.exit(main())
