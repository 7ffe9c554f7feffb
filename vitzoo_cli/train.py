"""Train what a config describes: a detector, a segmentor or a classifier.

CONFIG is a file, or the name of a config that comes with the package ("vitzoo::" before it and ".py" behind it may be left out). A bar
shows how long it will take, a table what each validation gave. All that the libraries say goes to console.log in --work-dir, or with
--verbose to the terminal. Several processes, one a GPU:

    python -m torch.distributed.run --standalone --nproc_per_node=8 -m vitzoo train CONFIG --launcher pytorch
"""
import argparse
import os

from . import configs
from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configs.add_arguments(parser)
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help='go on from it, or from the latest in --work-dir')
    weights.add_argument('--load-from', metavar='CHECKPOINT', help='start from the weights of a whole detector, segmentor or classifier')
    parser.add_argument('--amp', action='store_true', help='mixed precision, on GPUs')
    parser.add_argument('--auto-scale-lr', action='store_true', help='fit the rate to the batch, by the config\'s auto_scale_lr')


def run(args: argparse.Namespace, output: Output) -> int:
    cfg, watch = configs.carry_out('train', args, output, _prepare)
    from mmengine.runner import find_latest_checkpoint
    checkpoint = find_latest_checkpoint(cfg.work_dir)
    checkpoint = checkpoint and os.path.relpath(checkpoint)
    output.json({'config': args.config, 'work_dir': cfg.work_dir, 'checkpoint': checkpoint, 'iterations': watch.iterations,
                 'seconds': watch.seconds, 'validations': watch.validations})
    if not args.verbose:
        output.facts(f'trained {watch.iterations} iterations in {watch.seconds:.0f} s', {
            'checkpoint': checkpoint, 'log': watch.console, 'evaluate it': f'vitzoo test {args.config} {checkpoint}'})
    return 0


def _prepare(args: argparse.Namespace, output: Output):
    from vitzoo.mm import check_load_from, check_resumable
    from vitzoo.mm.own_data import check_root
    asked = {'amp': args.amp, 'auto_scale_lr': args.auto_scale_lr, 'load_from': args.load_from}
    cfg = configs.read_config(args, **{name: value for name, value in asked.items() if value})
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
        if args.resume != 'auto':
            check_resumable(args.resume)
    check_load_from(cfg)
    for part in 'train', 'val':
        check_root(cfg, part)
    if args.amp and cfg.optim_wrapper.type != 'AmpOptimWrapper':
        output.note('vitzoo: --amp: there is no GPU, so training is in plain float32')
    return cfg
