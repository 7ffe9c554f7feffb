"""Evaluate a checkpoint on the test data of its config.

CONFIG is as for "vitzoo train". Prints mAP, mIoU, or top-1 and top-5, whatever the config's evaluator gives.
"""
import argparse

from . import configs
from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configs.add_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='the weights of a whole detector, segmentor or classifier')


def run(args: argparse.Namespace, output: Output) -> int:
    cfg, watch = configs.carry_out('test', args, output, _prepare)
    output.json({'config': args.config, 'checkpoint': args.checkpoint, 'work_dir': cfg.work_dir, 'seconds': watch.seconds,
                 'metrics': watch.metrics})
    if not args.verbose:
        from .watch import show
        show(output, f'{args.checkpoint} on the test data of {args.config}', watch.metrics)
    return 0


def _prepare(args: argparse.Namespace, output: Output):
    from vitzoo.mm import check_load_from
    from vitzoo.mm.own_data import check_root
    cfg = configs.read_config(args)
    cfg.load_from = args.checkpoint
    check_load_from(cfg)
    check_root(cfg, 'test')
    return cfg
