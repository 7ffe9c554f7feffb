"""Draw which positions of an image belong together, or are left, in each layer of a model.

MODEL is a registered name: SViT (super tokens), BiFormer (regions that are attended to), STViT (semantic tokens), DaViT (windows),
LookupViT (compressed tokens), or with --reduce a vision transformer of timm's (tokens). The picture has a panel for each layer: what
belongs together has a colour and an edge, what was dropped fades, and of what is counted bright is much. The image is scaled and cut as the
model wants it. Without --checkpoint and --pretrained the weights are random, and so is what is chosen. A picture of an earlier run is
replaced, another file only with --force.
"""
import argparse
from fnmatch import fnmatchcase

from vitzoo_runtime.files import refuse_to_replace

from .files import check_picture
from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import add_reduce
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument('image', metavar='IMAGE')
    add_reduce(parser)
    parser.add_argument('--layers', nargs='+', metavar='PATTERN',
                        help='layers to show, by name or shell pattern, such as "stages.2.*" (default: all; where tokens are reduced, '
                        'those that change something)')
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--checkpoint', metavar='FILE', help='weights, in any published layout')
    weights.add_argument('--pretrained', action='store_true', help='download the published weights of the tag')
    parser.add_argument('--out', default='token_maps.png', metavar='FILE', help='the PNG file to write (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a file that is no earlier picture')


def run(args: argparse.Namespace, output: Output) -> int:
    import os

    import timm
    import torch

    from vitzoo import load_checkpoint, token_map
    from vitzoo.viz import draw_token_maps
    from vitzoo_runtime.images import read_image
    from vitzoo_runtime.pictures import save_png

    from . import models
    models.known(args.model)
    out = check_picture(args.out)
    refuse_to_replace([out], filter(None, (args.image, args.checkpoint)), args.force)
    picture = _read(args.image, read_image)
    model = timm.create_model(args.model, pretrained=args.pretrained).eval()
    weights = 'loaded' if args.checkpoint or args.pretrained else 'random'
    if args.reduce:
        before = len(model.state_dict())
        models.reduce(model, args.reduce)
        if len(model.state_dict()) > before and not args.checkpoint:
            weights = 'random'  # the parts that the method has learned
    if args.checkpoint:
        models.allow_runner_checkpoints(args.checkpoint)
        load_checkpoint(model, args.checkpoint)
    preprocessing = _preprocessing(model)
    crop = preprocessing.crop(picture)
    maps = token_map(model, torch.from_numpy(preprocessing(picture)))
    shown = _choose(maps, args.layers)
    save_png(draw_token_maps(crop, shown), out)
    layers = [{'layer': m.layer, 'kind': m.kind, 'what': m.what, 'total': m.total, 'size': list(m.labels.shape), 'stride': list(m.stride),
               'dropped': int((m.labels < 0).sum())} for m in shown]
    output.json({'model': args.model, 'image': args.image, 'input_size': list(preprocessing.size), 'weights': weights,
                 'reduce': args.reduce, 'layers': layers,
                 'picture': os.fspath(out)})
    rows = [(m.layer, 'x'.join(map(str, m.labels.shape)), m.total, m.what) for m in shown]
    output.table(f'{args.model}, drawn in {out}', ('layer', 'positions', 'number', 'of'), rows, right=('positions', 'number'))
    if weights == 'random':
        output.note('vitzoo: the weights are random, and so is what is chosen (--checkpoint FILE or --pretrained)')
    return 0


def _choose(maps: list, patterns: list[str] | None) -> list:
    """Those of the layers that match; without patterns all but those whose tokens are the ones of the layer before."""
    if patterns:
        found = [m for m in maps if any(fnmatchcase(m.layer, pattern) for pattern in patterns)]
        if not found:
            raise ValueError(f'--layers {" ".join(patterns)}: there are {", ".join(dict.fromkeys(m.layer for m in maps))}')
        return found
    found, last = [], None
    for m in maps:
        if m.kind != 'tokens' or last is None or not m.labels.equal(last.labels):
            found.append(m)
        if m.kind == 'tokens':
            last = m
    return found


def _read(path: str, read_image):
    try:
        return read_image(path)
    except Exception as e:  # whatever decoders stumble over
        raise ValueError(f'{path}: this image cannot be read ({getattr(e, "strerror", None) or e})') from e


def _preprocessing(model):
    """As timm's transform for evaluation, of the model's own size."""
    from timm.data import resolve_model_data_config

    from vitzoo_runtime.images import Preprocessing
    data = resolve_model_data_config(model)
    return Preprocessing(*(data[key] for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')))
