"""Convert a published checkpoint to our layout, once.

MODEL is the registered name whose weights they are, best with its tag. The result is a .safetensors file whose metadata says where it came
from: hash and name of the source, model, licence. With --config instead, FILE is a whole detector or segmentor, and the result a .pth file
that mmdet's and mmseg's tools load. The weights are checked against the model, of which nothing may be missing; FILE is read as data, never
executed.
"""
import argparse
import hashlib
import os
from pathlib import Path

from vitzoo_runtime.files import refuse_to_replace, replacing
from vitzoo_runtime.terminal import printable

from .configs import find_config
from .output import Output
from .quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import count
    parser.add_argument('model', nargs='?', metavar='MODEL', help='registered name')
    parser.add_argument('file', metavar='FILE', help='.pth or .safetensors, in any published layout of the family')
    parser.add_argument('--model', dest='model_before', metavar='NAME', help=argparse.SUPPRESS)  # how 0.1 wrote it; goes with 0.3
    parser.add_argument('--config', metavar='FILE', help='the config of the detector or segmentor whose weights they are, instead of MODEL')
    parser.add_argument('--out', required=True, metavar='FILE', help='the .safetensors (MODEL) or .pth file (--config) to write')
    parser.add_argument('--num-classes', type=count, metavar='N', help="if not the model's own number")
    parser.add_argument('--features', action='store_true', help='the file is a dense backbone, without classifier')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights')
    parser.add_argument('--license', metavar='TEXT', help='of the weights (default: what the model says)')
    parser.add_argument('--force', action='store_true', help='replace an existing file')


def run(args: argparse.Namespace, output: Output) -> int:
    args.model = args.model or args.model_before
    if bool(args.model) == bool(args.config):
        raise ValueError('give either MODEL FILE, or FILE and --config')
    source, out = Path(args.file), Path(args.out)
    if not source.is_file():
        raise ValueError(f'{source}: no such file')
    suffix = '.pth' if args.config else '.safetensors'
    if out.suffix != suffix:
        raise ValueError(f'--out {out}: expected a name that ends in {suffix}')
    if not out.parent.is_dir():
        raise ValueError(f'--out {out}: there is no folder {out.parent}')
    if out.is_dir():
        raise ValueError(f'--out {out} is a folder: expected the name of a file')
    if os.path.lexists(out) and not args.force:
        raise ValueError(f'--out {out} exists; --force replaces it')
    refuse_to_replace([out], force=args.force)

    state, metadata, report = (_convert_detector if args.config else _convert_model)(args, out)
    output.json({'file': str(out), 'bytes': out.stat().st_size, 'entries': len(state), 'metadata': metadata, 'report': report.to_dict()})
    output.facts(f'{source} -> {out}', {
        **{key: value for key, value in metadata.items() if key != 'format'},
        'entries': f'{len(report.loaded)} loaded, {len(report.renamed)} of them renamed',
        'dropped': _some(report.dropped),
        'new': _some(report.new),
        'size': f'{out.stat().st_size / 1e6:.1f} MB',
    })
    return 0


def _convert_model(args: argparse.Namespace, out: Path) -> tuple:
    import timm
    from safetensors.torch import save_file

    from vitzoo import DenseBackbone, load_checkpoint

    from . import models
    models.known(args.model)
    if args.features and args.num_classes is not None:
        raise ValueError('--features has no classes; leave out --num-classes')
    if args.features:
        model = DenseBackbone(args.model)
        config = model.model.pretrained_cfg
    else:
        model = timm.create_model(args.model, **({} if args.num_classes is None else {'num_classes': args.num_classes}))
        config = model.pretrained_cfg
    models.allow_runner_checkpoints(args.file)
    report = load_checkpoint(model, args.file, use_ema=args.ema)
    metadata = {
        'format': 'pt', 'model': config['architecture'] + (f'.{config["tag"]}' if config.get('tag') else ''),
        'form': 'features' if args.features else 'classifier', **_origin(args), 'origin': config.get('origin_url') or 'unknown',
        'license': args.license or config.get('license') or 'unknown',
    }
    if not args.features:
        metadata['num_classes'] = str(model.num_classes)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    with replacing(out) as temporary:
        save_file(state, temporary, metadata)
    return state, metadata, report


def _convert_detector(args: argparse.Namespace, out: Path) -> tuple:
    if args.features or args.num_classes is not None:
        raise ValueError('--features and --num-classes go with MODEL; a config says itself what its model has')
    import torch

    from vitzoo.weights import read_meta
    with quiet():
        from mmengine.registry import MODELS, init_default_scope

        from vitzoo import mm
        cfg = mm.setup(find_config(args.config))
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        model = MODELS.build(cfg.model)
    if not hasattr(model, 'backbone'):
        raise ValueError(f'{args.config} builds a {type(model).__name__}, no detector or segmentor; MODEL converts classifiers')
    report = mm.load_whole(model, args.file, use_ema=args.ema)
    metadata = {'model': type(model).__name__, 'config': args.config, **_origin(args), 'license': args.license or 'unknown'}
    # what mmdet and mmseg ask a file for: the names of its classes, in the words of any version
    published = read_meta(args.file)
    names = {key: published[key] for key in ('dataset_meta', 'CLASSES', 'PALETTE') if key in published}
    state = model.state_dict()
    with replacing(out) as temporary:
        torch.save({'meta': {**metadata, **names}, 'state_dict': state}, temporary)
    return state, metadata, report


def _some(names: list[str], most: int = 20) -> str | None:
    """The first of them; --json has all."""
    more = len(names) - most
    return ', '.join([*(printable(name, 80) for name in names[:most]), *([f'and {more} more'] if more > 0 else [])]) or None


def _origin(args: argparse.Namespace) -> dict[str, str]:
    from vitzoo import __version__
    with open(args.file, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') else \
            hashlib.sha256(file.read()).hexdigest()
    return {'vitzoo': __version__, 'source': Path(args.file).name, 'source_sha256': digest, 'weights': 'averaged' if args.ema else 'last'}
