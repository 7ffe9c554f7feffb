"""Compare ways to reduce a transformer's tokens: cost, time, agreement, stability.

MODEL is a transformer of timm's by its registered name. For each setting of each method: multiply-adds; the time of one image on one thread
in PyTorch and ONNX Runtime, in turns with the plain model; how far class, features and last map (restored to the full grid) are from the
plain model's; and how much of the choice of tokens stays when each pixel changes by one grey level. Without IMAGES, photographs and digit
scenes that come with scikit-learn and matplotlib are used. Folders are searched for images, hidden files and folders left out. Without
--checkpoint and --pretrained the weights are random: costs and times hold, agreement says little. --out gets a picture of agreement against
cost; a picture that this command wrote is replaced, another file only with --force.
"""
import argparse
from pathlib import Path

from vitzoo_runtime.files import refuse_to_replace
from vitzoo_runtime.terminal import printable

from .files import check_picture
from .output import Output

BUILT_IN = 'built in'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import count, size
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument('images', nargs='*', metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--methods', nargs='+', default=[], metavar='METHOD',
                        help='with two or three settings each (default: all that fit, if there is no --setting)')
    parser.add_argument('--setting', action='append', default=[], metavar='METHOD:OPTION=VALUE,...', dest='settings',
                        help='such as tome:r=8 or "evit:keep_rate=0.5,locations=(3,6,9)"; may be repeated')
    parser.add_argument('--size', type=size, metavar='HxW', help="of the images as the model sees them (default: the model's own)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--checkpoint', metavar='FILE', help='weights, in any published layout')
    weights.add_argument('--pretrained', action='store_true', help='download the published weights of the tag')
    parser.add_argument('--most', type=count, default=64, metavar='N', help='of more images, N spread over all (default: %(default)s)')
    parser.add_argument('--no-latency', action='store_true', help='time nothing')
    parser.add_argument('--no-export', action='store_true', help='time nothing in ONNX Runtime')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='of the timing (default: %(default)s)')
    parser.add_argument('--out', metavar='FILE.png', help='a picture of agreement against cost')
    parser.add_argument('--force', action='store_true', help='replace a file that is not from an earlier run')


def run(args: argparse.Namespace, output: Output) -> int:
    from vitzoo.reduction import compare, default_settings, parse_setting
    from vitzoo.reduction.compare import draw, fitting_settings

    from . import models
    if not 1 <= args.rounds <= 1000:
        raise ValueError(f'--rounds {args.rounds}: expected 1 to 1000')
    if args.out:
        _check_out(args)
    models.known(args.model)
    given = [parse_setting(text) for text in args.settings]
    model, weights = _build(args)
    height, width = args.size or model.patch_embed.img_size
    grid = model.patch_embed.dynamic_feat_size((height, width))
    if args.methods:
        given += default_settings(len(model.blocks), grid[0] * grid[1], args.methods)
    settings, unfit = (given, {}) if given else fitting_settings(model, grid[0] * grid[1])
    for reason in unfit.values():
        output.note(f'vitzoo: left out: {reason}')
    if weights == 'random':
        output.note('vitzoo: no weights given: they are random, and agreement says little (--checkpoint FILE or --pretrained)')
    x, about, failed = _read(args, model, (height, width), output)
    export = not (args.no_latency or args.no_export)
    with output.bar('comparing', len(settings) + 1) as advance:
        rows = compare(model, x, settings, latency=not args.no_latency, export=export, rounds=args.rounds, progress=advance)
    if args.out:
        draw(rows, args.out)
    output.json({'model': args.model, 'weights': weights, 'input_size': list(x.shape[1:]), 'images': {'count': len(x), 'source': about},
                 'settings': [row.to_dict() for row in rows], 'picture': args.out, 'failed': failed})
    _print(rows, f'{args.model} at {height}x{width}, {weights} weights, {len(x)} images: {about}', output)
    for failure in failed:
        output.note(f'vitzoo: {failure["image"]} was skipped ({failure["error"]})')
    return 1 if failed else 0


def _check_out(args: argparse.Namespace) -> None:
    """Raise ValueError where the picture cannot be written, before any work."""
    from vitzoo.extras import require
    refuse_to_replace([check_picture(args.out)], [*args.images, *filter(None, [args.checkpoint])], args.force)
    require('matplotlib', 'viz')


def _build(args: argparse.Namespace):
    """The model with its weights, and what to call these."""
    import timm
    import torch

    from vitzoo import load_checkpoint
    from vitzoo.reduction.apply import find_transformer

    from . import models
    with torch.device('meta'):
        find_transformer(timm.create_model(args.model))
    size = {} if args.size is None else {'img_size': args.size}
    model = timm.create_model(args.model, pretrained=args.pretrained, **size).eval()
    if args.checkpoint:
        models.allow_runner_checkpoints(args.checkpoint)
        load_checkpoint(model, args.checkpoint)
    return model, 'loaded' if args.checkpoint or args.pretrained else 'random'


def _read(args: argparse.Namespace, model, size: tuple[int, int], output: Output):
    """Images (B, C, H, W), where they are from, and those that could not be read. Raises ValueError if none is left."""
    import numpy as np
    import torch
    from timm.data import resolve_data_config

    from vitzoo_runtime.images import Preprocessing, read_image

    from .files import find_images, other_pictures
    data = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    prepare = Preprocessing((model.in_chans, *size), tuple(data['mean']), tuple(data['std']), data['interpolation'], data['crop_pct'])
    failed = []
    if not args.images:
        from vitzoo.datasets.samples import ABOUT, sample_images
        arrays, about = [prepare(image) for image in sample_images().values()], f'{BUILT_IN}: {ABOUT}'
        arrays = _spread(arrays, args.most)
    else:
        out = args.out and Path(args.out).resolve()
        paths = [path for path in find_images(args.images) if path.resolve() != out]
        arrays, about = [], ', '.join(args.images)
        for note in other_pictures(args.images)[1]:
            output.note(f'vitzoo: {note}')
        for path in _spread(paths, args.most):
            try:
                arrays.append(prepare(read_image(path)))
            except Exception as e:  # whatever decoders stumble over
                failed.append({'image': str(path), 'error': f'{type(e).__name__}: {printable(" ".join(str(e).split()), 500)}'})
        if not arrays:
            raise ValueError(f'{about}: no image could be read' + (f' ({failed[0]["image"]}: {failed[0]["error"]})' if failed else ''))
    return torch.from_numpy(np.concatenate(arrays)), about, failed


def _spread(items: list, most: int) -> list:
    """At most so many, evenly over all."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _print(rows, title: str, output: Output) -> None:
    from vitzoo.reduction.compare import CLOCKS
    clocks = list(rows[0].latency_ms)
    columns = ['setting', 'patches left', 'MACs, G', 'share', *(f'{CLOCKS[name]}, ms' for name in clocks), 'same top-1', 'features',
               'last map', 'choice kept']
    lines = [[row.name, row.tokens, f'{row.macs / 1e9:.3f}', f'{row.share:.2f}', *(_time(row, name) for name in clocks),
              *map(_number, (row.top1, row.feature, row.dense, row.overlap))] for row in rows]
    output.table(title, columns, lines, right=columns[1:])
    untrained = dict.fromkeys(row.method for row in rows if row.untrained)
    if untrained:
        output.note(f'vitzoo: {", ".join(untrained)} learn what to keep, and nobody trained that here: their agreement says nothing')
    for row in rows:
        for note in row.notes:
            output.note(f'vitzoo: {row.name}: {note}')


def _time(row, name: str) -> str:
    if name not in row.latency_ms:
        return '-'
    return f'{row.latency_ms[name]:.1f}' + (f' ({row.ratio[name][0]:.2f} of plain)' if name in row.ratio else '')


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
