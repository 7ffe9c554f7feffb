"""Configs, and what is done with them, for `vitzoo train` and `vitzoo test`."""
import argparse
import contextlib
import os
import traceback
from pathlib import Path

from .output import Output
from .quiet import quiet
from .threads import choose_threads

CONSOLE = 'console.log'  # in the folder of a run: what --verbose shows in the terminal
RANK = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}  # launcher -> where it numbers its processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', metavar='CONFIG', help='a file, or the name of one that comes with the package, such as '
                        'detection/mask-rcnn_svit_micro_digits')
    parser.add_argument('--backbone', metavar='MODEL',
                        help="any of timm's and ours, or a file as in configs/_base_/backbones, instead of the config's own")
    parser.add_argument('--work-dir', metavar='DIR', help='for logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument('--seed', type=int, metavar='N', help='default: that of the config, else 0')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='such as train_cfg.max_iters=100')
    parser.add_argument('--launcher', choices=['none', *RANK], default='none', help='what started several processes (default: none)')
    parser.add_argument('--verbose', action='store_true', help='print what the libraries say instead of a bar and tables')


def find_config(config: str) -> Path:
    """A config's file, by its path or by the name of a shipped one. Raises ValueError where there is none."""
    if Path(config).is_file():
        return Path(config)
    from vitzoo.mm import config_path
    try:
        return config_path(config)
    except ValueError as e:
        raise ValueError(f'{config}: no such file, and {e}') from e


def read_config(args: argparse.Namespace, **more):
    """The config that fits this machine. Raises ValueError for what is wrong in the words of the command line."""
    from vitzoo.mm import setup
    return setup(find_config(args.config), backbone=args.backbone, cfg_options=_parse_options(args.cfg_options or []),
                 work_dir=args.work_dir, launcher=args.launcher, seed=args.seed, **more)


def _parse_options(words: list[str]) -> dict:
    from mmengine.config import DictAction
    for word in words:
        if not word.partition('=')[0] or '=' not in word:
            raise ValueError(f'--cfg-options {word}: expected KEY=VALUE, such as train_cfg.max_iters=100')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    return parser.parse_args(['--options', *words]).options if words else {}


def carry_out(action: str, args: argparse.Namespace, output: Output, prepare):
    """Have mmengine's Runner 'train' or 'test'; returns the config and a `Watch` of what happened, which is shown unless --verbose.

    `prepare` makes the config of `args`; what is wrong there is known before anything is written.
    """
    if args.launcher == 'none':  # else as many processes as there are GPUs, with a thread each
        choose_threads()
    rank = int(os.environ.get(RANK.get(args.launcher, ''), 0))
    if rank:  # the first process speaks for all
        output.silence()
    with contextlib.ExitStack() as stack:
        log = None
        if not args.verbose:
            output.note('loading PyTorch and the model ...')
            log = stack.enter_context(quiet())
        cfg = prepare(args, output)
        console = None
        if log:
            console = Path(cfg.work_dir, f'{rank}.{CONSOLE}' if rank else CONSOLE)
            console.parent.mkdir(parents=True, exist_ok=True)
            log.save(console)
        from .watch import Watch
        watch = Watch(output, console)
        try:
            from mmengine.registry import RUNNERS
            runner = RUNNERS.build(cfg)  # `runner_type`, by default mmengine's Runner
            runner.register_hook(watch)
            with watch:
                getattr(runner, action)()
        except Exception:
            traceback.print_exc()  # to the log, where there is one
            if log:
                output.note(f'vitzoo: more in {console}')
            raise
        import torch.distributed
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return cfg, watch
