"""List the models of vitzoo.

A line for each: parameters, multiply-adds at the image size of its configuration, published top-1 accuracy on ImageNet-1k, and whether its
weights can be downloaded by a program ("download") or by hand alone. PATTERN is a shell pattern such as "svit_*". timm's own models work
with the other commands as well; timm.list_models() names them.
"""
import argparse

from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help='show names that match (default: all)')


def run(args: argparse.Namespace, output: Output) -> int:
    from vitzoo.profiling.counted import counted
    from vitzoo.profiling.published import published

    from . import models
    names = models.our_models(args.pattern if set('*?[') & set(args.pattern) else f'*{args.pattern}*')
    if not names:
        raise ValueError(f'no model of vitzoo matches {args.pattern!r}; "vitzoo list" shows all')
    found, rows = [], []
    for name in names:
        cost, result, tags = counted().get(name), published(name), models.tags_of(name)
        size = next(iter(tags.values())).input_size[-1]
        found.append({'name': name, 'params': cost and cost.params, 'macs': cost and cost.macs, 'top1': result and result.top1,
                      'tags': {tag: {'input_size': list(cfg.input_size), 'weights': models.where(cfg)} for tag, cfg in tags.items()}})
        rows.append((name, *((f'{cost.params / 1e6:.1f} M', f'{cost.macs / 1e9:.2f}') if cost else ('-', '-')), size,
                     f'{result.top1:.1f}' if result else '-', models.how(tags.values())))
    output.json(found)
    output.table(f'{len(found)} models; "vitzoo info NAME" says more', ('name', 'params', 'GMACs', 'at', 'top-1', 'weights'), rows,
                 right=('params', 'GMACs', 'at', 'top-1'))
    return 0
