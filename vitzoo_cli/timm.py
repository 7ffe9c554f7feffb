"""Run a script that builds models through timm, with ours registered.

SCRIPT is a file such as timm's train.py, or with -m a module as of `python -m`; what follows it is its own. Under torchrun:
torchrun --nproc_per_node 8 -m vitzoo timm train.py ...
"""
import argparse
import runpy
import sys
import traceback
from pathlib import Path

from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-m', '--module', action='store_true', help='SCRIPT is the name of a module')
    parser.add_argument('script', metavar='SCRIPT', help='the file to run')
    parser.add_argument('arguments', metavar='ARGUMENTS', nargs=argparse.REMAINDER, help='for the script')


def run(args: argparse.Namespace, output: Output) -> int:
    script = Path(args.script)
    if not args.module and not script.is_file():
        raise ValueError(f'{script}: no such file; the scripts of timm lie in its repository, not in what pip installs (-m for a module)')
    import vitzoo  # noqa: F401  (registers the models)
    sys.argv = [str(script), *args.arguments]  # in place of ours
    sys.path.insert(0, '' if args.module else str(script.resolve().parent))
    try:
        if args.module:
            runpy.run_module(args.script, run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(str(script), run_name='__main__')
    except Exception:  # not ours, so whole, as Python would show it
        traceback.print_exc()
        return 1
    return 0
