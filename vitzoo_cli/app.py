"""The command line as a whole: one module a command, each with `add_arguments(parser)`, `run(args, output) -> status` and a docstring whose
first line is its help."""
import argparse
import importlib.util
import sys
import traceback
from collections.abc import Sequence

from vitzoo_runtime import __version__, terminal

from .completion import complete
from .output import Output

COMMANDS = (
    'list', 'info', 'demo', 'train', 'test', 'export', 'convert', 'predict', 'show', 'compare-reduction', 'bench', 'profile', 'timm')
NEEDED = ('torch', 'timm')  # by all but `predict --onnx`


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--json', action='store_true', help='print JSON, without progress bars')
    common.add_argument('--debug', action='store_true', help='on an error, show where it came from')

    parser = argparse.ArgumentParser(
        prog='vitzoo', description='Efficient vision transformers: exact, fast, any size, from timm to MMDetection to ONNX.',
        epilog='Exit status: 0 fine, 1 something failed, 2 bad arguments. "vitzoo COMMAND --help" says more.')
    parser.add_argument('--version', action='store_true', help='print the version and exit')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name in COMMANDS:
        module = importlib.import_module('.' + name.replace('-', '_'), __package__)
        first, _, rest = module.__doc__.partition('\n')
        command = commands.add_parser(name, parents=[common], help=first, description=f'{first}\n{rest}'.rstrip(),
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parser.commands = commands.choices
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    with terminal.command():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    complete(parser)
    args = parser.parse_args(argv)
    if args.version:
        print(f'vitzoo {__version__}')
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            print(f'vitzoo: {_without(" and ".join(missing))}', file=sys.stderr)
        return 0
    if not args.command:
        parser.print_help(sys.stderr)
        return 2
    try:
        status = args.run(args, Output(args.json))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        return 0
    except Exception as e:  # the one place where an error becomes a message
        if args.debug:
            traceback.print_exc()
        print(f'vitzoo: {_one_line(e)}', file=sys.stderr)
        return 2 if isinstance(e, ValueError) else 1


def _without(names: str) -> str:
    return f'there is no {names} here, without which nothing but "predict --onnx" works; they come with: pip install vitzoo'


def _one_line(e: Exception) -> str:
    if isinstance(e, ModuleNotFoundError) and e.name in NEEDED:
        return _without(e.name)
    text = terminal.printable(' '.join(str(e).split()), terminal.LONGEST)
    ours = isinstance(e, (ValueError, ImportError, OSError)) or type(e).__module__.startswith('vitzoo')
    return text if ours and text else f'{type(e).__name__}: {text} (--debug shows where it came from)'
