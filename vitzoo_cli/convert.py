"""Convert a published checkpoint to our layout, once.

The result is a .safetensors file whose metadata says where it came from: hash and name of the source, model, licence. The weights are
checked against the model; FILE is read as data, never executed.
"""
import argparse
import hashlib
from pathlib import Path

from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('file', metavar='FILE', help='.pth or .safetensors, in any published layout of the family')
    parser.add_argument('--model', required=True, metavar='NAME', help='the model whose weights they are, best with its tag')
    parser.add_argument('--out', required=True, metavar='FILE', help='the .safetensors file to write')
    parser.add_argument('--num-classes', type=int, metavar='N', help="if not the model's own number")
    parser.add_argument('--features', action='store_true', help='the file is a dense backbone, without classifier')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights')
    parser.add_argument('--license', metavar='TEXT', help='of the weights (default: what the model says)')
    parser.add_argument('--force', action='store_true', help='replace an existing file')


def run(args: argparse.Namespace, output: Output) -> int:
    source, out = Path(args.file), Path(args.out)
    if not source.is_file():
        raise ValueError(f'{source}: no such file')
    if out.suffix != '.safetensors':
        raise ValueError(f'--out {out}: expected a name that ends in .safetensors')
    if not out.parent.is_dir():
        raise ValueError(f'--out {out}: there is no folder {out.parent}')
    if out.exists() and not args.force:
        raise ValueError(f'--out {out} exists; --force replaces it')

    import timm
    from safetensors.torch import save_file

    from vitzoo import DenseBackbone, __version__, load_checkpoint

    from . import models
    from .files import replacing
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
    report = load_checkpoint(model, source, use_ema=args.ema)
    with source.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') else \
            hashlib.sha256(file.read()).hexdigest()
    name = config['architecture'] + (f'.{config["tag"]}' if config.get('tag') else '')
    metadata = {
        'format': 'pt', 'model': name, 'form': 'features' if args.features else 'classifier', 'vitzoo': __version__,
        'source': source.name, 'source_sha256': digest, 'origin': config.get('origin_url') or 'unknown',
        'license': args.license or config.get('license') or 'unknown', 'weights': 'averaged' if args.ema else 'last',
    }
    if not args.features:
        metadata['num_classes'] = str(model.num_classes)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    with replacing(out) as temporary:
        save_file(state, temporary, metadata)
    output.json({'file': str(out), 'bytes': out.stat().st_size, 'entries': len(state), 'metadata': metadata, 'report': report.to_dict()})
    output.facts(f'{source} -> {out}', {
        **{key: value for key, value in metadata.items() if key != 'format'},
        'entries': f'{len(report.loaded)} loaded, {len(report.renamed)} of them renamed',
        'dropped': ', '.join(report.dropped) or None,
        'new': ', '.join(report.new) or None,
        'size': f'{out.stat().st_size / 1e6:.1f} MB',
    })
    return 0
