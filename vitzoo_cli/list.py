"""List the models of vitzoo.

PATTERN is a shell pattern such as "svit_*". timm's own models work with the other commands as well; timm.list_models() names them.
"""
import argparse

from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help='show names that match (default: all)')


def run(args: argparse.Namespace, output: Output) -> int:
    import timm
    import torch

    from . import models
    names = models.our_models(args.pattern if set('*?[') & set(args.pattern) else f'*{args.pattern}*')
    if not names:
        raise ValueError(f'no model of vitzoo matches {args.pattern!r}; "vitzoo list" shows all')
    found, rows = [], []
    for name in names:
        with torch.device('meta'):
            params = sum(p.numel() for p in timm.create_model(name).parameters())
        tags = models.tags_of(name)
        found.append({'name': name, 'params': params,
                      'tags': {tag: {'input_size': list(cfg.input_size), 'weights': models.where(cfg)} for tag, cfg in tags.items()}})
        first = name, f'{params / 1e6:.1f} M'
        for tag, cfg in tags.items():
            rows.append((*first, tag, 'x'.join(map(str, cfg.input_size)), models.where_in_short(cfg)))
            first = '', ''
    output.json(found)
    output.table(f'{len(found)} models', ('name', 'parameters', 'tag', 'input', 'weights'), rows, right=('parameters',))
    return 0
