"""Say what a model is: size, cost, stages, source, licence, weights.

MODEL is any registered name, of ours or timm's, with or without a tag ("svit_small.in1k_384").
"""
import argparse
import itertools

from .output import Output

MOST_TRACED = 20e9  # multiply-adds of a model that is run for fvcore's sake


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import size
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument('--size', type=size, metavar='HxW', help="image for which the cost is counted (default: the model's own)")


def run(args: argparse.Namespace, output: Output) -> int:
    import inspect

    import timm
    import torch
    from timm.models import model_entrypoint

    from vitzoo import profile

    from . import models
    models.known(args.model)
    with torch.device('meta'):
        model = timm.create_model(args.model)
    cfg = model.pretrained_cfg
    name = cfg['architecture']
    cost = profile(model, args.size or tuple(cfg['input_size']))
    fixed = cfg.get('fixed_input_size')
    smallest = cfg.get('min_input_size')
    about = inspect.getdoc(model_entrypoint(name)) or ''
    info = {
        'model': name, 'tag': cfg.get('tag') or None, 'about': cfg.get('description') or about.partition('\n')[0] or None,
        'params': cost.params, 'input_size': list(cost.input_size), 'macs': cost.macs, 'activations': cost.activations,
        'bytes_moved': cost.bytes_moved, 'operators': cost.operators, 'num_classes': model.num_classes,
        'stages': [{'channels': stage['num_chs'], 'stride': stage['reduction']} for stage in getattr(model, 'feature_info', [])],
        'classifier_size': list(model.classifier_size) if getattr(model, 'form', None) == 'auto' else None,
        'min_input_size': list(smallest) if smallest else None, 'fixed_input_size': bool(fixed),
        'paper': cfg.get('paper_ids') or None, 'license': cfg.get('license') or None,
        'weights': {tag: models.where(c) for tag, c in models.tags_of(name).items()},
        'fvcore': _fvcore(args.model, cost),
    }
    output.json(info)
    if fixed:
        sizes = 'fixed' + (' (vitzoo.DenseBackbone frees it)' if info['stages'] else '')
    else:
        sizes = f'{"x".join(map(str, smallest[-2:]))} at least' if smallest else 'any'
    native = 'x'.join(map(str, info['classifier_size'] or ()))
    output.facts(args.model, {
        'about': info['about'],
        'parameters': f'{cost.params:,}',
        f'MACs at {"x".join(map(str, cost.input_size))}': f'{cost.macs / 1e9:.3f} G',
        'MACs by fvcore': _about_fvcore(info['fvcore']),
        'memory traffic': f'{cost.bytes_moved / 1e6:.0f} MB an image in {cost.operators} operators (batch {cost.batch}, 16 bit)',
        'feature maps': _maps(info['stages']) or None,
        'classes': model.num_classes,
        'image sizes': sizes,
        f'at {native}': native and ['the classifier form: another function of the same weights than the dense form of other sizes;',
                                    "form='auto', the default, chooses so, and form='dense' runs the dense form here too"] or None,
        'paper': _paper(info['paper']),
        'licence': info['license'],
        'weights': [f'{tag}: {where}' if tag else where for tag, where in info['weights'].items()],
    })
    return 0


def _fvcore(name: str, cost) -> dict[str, int] | None:
    """Its own count, and the parts by which that differs from ours; None where it is not installed, or would take long: it runs."""
    import importlib.util
    if cost.macs > MOST_TRACED or importlib.util.find_spec('fvcore') is None:
        return None
    from vitzoo.profiling.exports import build
    from vitzoo.profiling.handles import fvcore_count
    found = fvcore_count(build(name, cost.input_size[1:]), cost.input_size)
    return found and found._asdict()


def _about_fvcore(found: dict[str, int] | None) -> str:
    agree = 'vitzoo.profiling.fvcore_handles() makes it agree'
    if found is None:
        return f'fewer by the products of fused attention, which it leaves out, and more by norms and pooling; {agree}'
    return (f'{found["macs"] / 1e9:.3f} G: without {found["attention"] / 1e9:.3f} G of fused attention, which it leaves out, and with '
            f'{found["other"] / 1e9:.3f} G of norms, pooling and the like; {agree}')


def _maps(stages: list[dict]) -> list[str]:
    """A line for each map; runs of equal ones, as columnar models have them, in one."""
    lines = []
    for line, same in itertools.groupby(f'stride {s["stride"]}: {s["channels"]} channels' for s in stages):
        count = len(list(same))
        lines.append(line if count == 1 else f'{line}, {count} of them')
    return lines


def _paper(ids: str | list[str] | None) -> list[str] | None:
    ids = [ids] if isinstance(ids, str) else ids or []
    return [i.replace('arXiv:', 'https://arxiv.org/abs/') for i in ids] or None
