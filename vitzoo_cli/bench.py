"""Measure the latency of models, in turns, in PyTorch, ONNX Runtime and OpenVINO.

PATTERN is a registered name, of ours or timm's, with or without a tag; a shell pattern such as "svit_*", which stands for all names that
match; or an ONNX file (.onnx). Without one, all models of vitzoo but the micro ones are measured. Times are CPU time of one thread,
medians over rounds; the share is that of a 768x768 matrix product in the same round. Weights are random: times do not depend on them.
Exported files are compared with the model before they are timed, and OpenVINO's outputs with ONNX Runtime's.

With --config instead of PATTERN, a whole detector or segmentor: the time of backbone, neck and head in PyTorch.
"""
import argparse
import fnmatch

from vitzoo_runtime.files import refuse_to_replace

from .output import Output

MOST = 200  # models at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import size
    parser.add_argument('patterns', nargs='*', metavar='PATTERN')
    parser.add_argument('--config', metavar='FILE', help='a config, as of "vitzoo train", instead of PATTERN; needs --size')
    parser.add_argument('--size', nargs='+', type=size, default=[], metavar='HxW', help="of the images (default: the model's own)")
    parser.add_argument('--runtimes', nargs='+', default=['eager', 'onnxruntime'], metavar='RUNTIME',
                        help='some of eager, compiled, onnxruntime, openvino (default: eager onnxruntime; for files onnxruntime)')
    parser.add_argument('--precisions', nargs='+', default=['fp32'], metavar='PRECISION',
                        help='some of fp32; int8, int8-static, fp16 (onnxruntime and openvino); bf16 (eager and compiled); default: fp32')
    parser.add_argument('--reduce', action='append', default=[], metavar='METHOD[:OPTION=VALUE,...]',
                        help='measure each model with its tokens reduced so as well, such as tome:r=8; may be repeated')
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 8], metavar='N', help='default: 1 8')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='of the timing (default: %(default)s)')
    parser.add_argument('--cache', metavar='DIR', help='keep exported files there, where the next run finds them')
    parser.add_argument('--csv', metavar='FILE', help='write the results, a row for each model, size, runtime, precision and batch')
    parser.add_argument('--plot', metavar='FILE.png', help='draw published accuracy, where it is known, and multiply-adds against latency')
    parser.add_argument('--force', action='store_true', help='replace a file that is not from an earlier run')


def run(args: argparse.Namespace, output: Output) -> int:
    from .files import check_picture
    if args.plot:
        from vitzoo.extras import require
        check_picture(args.plot, '--plot')
        require('matplotlib', 'viz')
    refuse_to_replace(filter(None, (args.plot, args.csv)), [*filter(_is_file, args.patterns), *filter(None, [args.config])], args.force)
    if args.config:
        return _split(args, output)
    from vitzoo.profiling.bench import bench, draw, steps, write_csv
    cases = _cases(args)
    with output.bar('preparing', steps(cases, args.batches, args.rounds)) as advance:
        found = bench(cases, batches=args.batches, rounds=args.rounds, cache=args.cache, progress=advance)
    if args.csv:
        write_csv(found, args.csv)
    if args.plot:
        draw(found, args.plot)
    output.json([result.to_dict() for result in found])
    _print(found, args.batches, output)
    failed = [result for result in found if result.error]
    for result in failed:
        output.note(f'vitzoo: {result.case}: {result.error}')
    return 1 if failed else 0


def _is_file(pattern: str) -> bool:
    return pattern.endswith('.onnx')


def _cases(args: argparse.Namespace) -> list:
    """All that is asked for and goes together. Raises ValueError where a word stands for nothing."""
    from vitzoo.profiling.bench import Case, check_pair
    pairs = [(runtime, precision) for runtime in dict.fromkeys(args.runtimes) for precision in dict.fromkeys(args.precisions)
             if check_pair(runtime, precision)]
    for word, place in [(word, 0) for word in args.runtimes] + [(word, 1) for word in args.precisions]:
        if not any(pair[place] == word for pair in pairs):
            raise ValueError(f'{word} goes with none of {", ".join(args.precisions if place == 0 else args.runtimes)}')
    cases = []
    for model in _models(args.patterns):
        for size in args.size or [None]:
            for reduce in [None] if _is_file(model) else [None, *args.reduce]:
                cases += [Case(model, size, runtime, precision, reduce) for runtime, precision in pairs
                          if not _is_file(model) or runtime in ('onnxruntime', 'openvino')]
    if not cases:
        raise ValueError('ONNX files run in onnxruntime and openvino alone: expected --runtimes onnxruntime')
    return cases


def _models(patterns: list[str]) -> list[str]:
    import timm

    import vitzoo  # noqa: F401  (registers our models)

    from . import models
    if not patterns:
        return [name for name in models.our_models() if not name.endswith('_micro')]
    found = []
    for pattern in patterns:
        if _is_file(pattern) or not set('*?[') & set(pattern):
            found.append(pattern if _is_file(pattern) else models.known(pattern))
            continue
        names = [name for name in timm.list_models() if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f'no registered model matches {pattern!r}')
        found += names
    found = list(dict.fromkeys(found))
    if len(found) > MOST:
        raise ValueError(f'{" ".join(patterns)} stands for {len(found)} models: expected at most {MOST} at a time')
    return found


def _print(found: list, batches: list[int], output: Output) -> None:
    from vitzoo.profiling.bench import SIDE, cpu_name
    columns = ['model', 'size', 'runtime', *(f'ms, batch {batch}' for batch in batches), *(f'images/s, batch {batch}' for batch in batches),
               *(f'share, batch {batch}' for batch in batches), 'MACs, G', 'MB moved', 'peak MB', 'file MB', 'top-1']
    rows = []
    for result in found:
        rows.append([
            result.case.name, 'x'.join(map(str, result.case.size)), result.case.how,
            *('{:.2f} [{:.2f}, {:.2f}]'.format(*result.ms[batch]) if batch in result.ms else '-' for batch in batches),
            *(_number(result.throughput(batch), 1) for batch in batches), *(_number(result.share.get(batch), 2) for batch in batches),
            _number(result.macs and result.macs / 1e9, 2), _number(result.megabytes, 1), _number(result.peak_megabytes, 0),
            _number(result.file_megabytes, 1), _number(result.top1, 1)])
    title = f'{cpu_name()}, one thread; ms an image, medians [lowest, highest]; share of a {SIDE}x{SIDE} matrix product'
    output.table(title, columns, rows, right=columns[3:])


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _split(args: argparse.Namespace, output: Output) -> int:
    if args.patterns or args.reduce or args.plot or args.csv:
        raise ValueError('--config goes with --size and --rounds alone')
    if len(args.size) != 1:
        raise ValueError('--config needs one --size HxW, that of the images as the model is to see them')
    if not 1 <= args.rounds <= 1000:
        raise ValueError(f'--rounds {args.rounds}: expected 1 to 1000')
    from vitzoo.extras import require

    from .configs import find_config
    from .quiet import quiet
    height, width = args.size[0]
    with quiet():
        require('mmdet', 'mm')
        from vitzoo.mm.latency import split_config
        found = split_config(find_config(args.config), (height, width), rounds=args.rounds)
    whole = found['whole'][0]
    output.json({'config': args.config, 'size': [height, width],
                 'ms': {name: dict(zip(('median', 'lowest', 'highest'), ms, strict=True)) for name, ms in found.items()}})
    output.table(f'{args.config} at {height}x{width}, PyTorch, one thread, random weights', ('part', 'ms [lowest, highest]', 'share'),
                 [(name, '{:.1f} [{:.1f}, {:.1f}]'.format(*ms), f'{ms[0] / whole:.2f}') for name, ms in found.items()],
                 right=('ms [lowest, highest]', 'share'))
    return 0
