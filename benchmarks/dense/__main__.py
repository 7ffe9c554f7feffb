"""Train micro backbones at equal budget on digit scenes, and report: make bench-dense, or python -m benchmarks.dense --help"""
import argparse
import sys
import warnings

from .. import command

warnings.simplefilter('ignore')  # mmcv and timm deprecate a lot on import


@command
def main() -> int:
    from ..pages import around
    from .plan import MODELS, TASKS, select
    from .report import END, START, report
    from .rows import read_rows
    from .run import run
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.dense', description='Train micro backbones at equal budget on digit scenes; finished rows are skipped.')
    parser.add_argument('--models', nargs='+', default=[], metavar='MODEL', help=f'some of {", ".join(MODELS)}; default all')
    parser.add_argument('--tasks', nargs='+', default=[], metavar='TASK', help=f'some of {", ".join(TASKS)}; default all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[], metavar='SEED', help='default 0 1 2')
    parser.add_argument('--jobs', type=int, help='processes side by side, one thread each; default one a core')
    parser.add_argument('--csv', default='benchmarks/dense/results.csv', help='rows (default: %(default)s)')
    parser.add_argument('--page', default='docs/bench_dense.md', help='tables go between its markers (default: %(default)s)')
    parser.add_argument('--picture', default='docs/bench_dense.png', help="plot, '' for none (default: %(default)s)")
    parser.add_argument('--out', default='runs/bench_dense', help='logs and weights (default: %(default)s)')
    parser.add_argument('--data', default='data/digit_scenes', help='digit scenes, built if needed (default: %(default)s)')
    parser.add_argument('--preset', default='standard', help='of the digit scenes (default: %(default)s)')
    parser.add_argument('--iterations', type=int, help="other than the tasks'; needs a --csv of its own")
    parser.add_argument('--no-seconds', action='store_true', help='leave times out of the tables')
    parser.add_argument('--report-only', action='store_true', help='train nothing')
    args = parser.parse_args()
    around(args.page, START, END)  # hours before it is written
    failures = {} if args.report_only else run(
        select(args.models, args.tasks, args.seeds), args.csv, data=args.data, out=args.out, jobs=args.jobs,
        iterations=args.iterations, preset=args.preset)
    if read_rows(args.csv):
        print(*report(args.csv, args.page, args.picture or None, seconds=not args.no_seconds), sep='\n')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
