"""What a shell offers for the words of a command line, by argcomplete (extra `completion`): models and configs too, without PyTorch."""
import argparse
import importlib.util
import os
from pathlib import Path


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and exit; do nothing otherwise, or without argcomplete."""
    if '_ARGCOMPLETE' not in os.environ or importlib.util.find_spec('argcomplete') is None:
        return
    import argcomplete
    for command in parser.commands.values():
        for action in command._actions:  # argparse has no other way to them
            if action.dest in COMPLETERS:
                action.completer = COMPLETERS[action.dest]
    argcomplete.autocomplete(parser)


def _package() -> Path:
    """The folder of vitzoo, which is not imported."""
    return Path(importlib.util.find_spec('vitzoo').origin).parent


def _models(**kwargs) -> list[str]:
    with (_package() / 'profiling' / 'counts.csv').open(encoding='utf-8') as file:
        return [line.partition(',')[0] for line in file][1:]


def _configs(prefix: str, **kwargs) -> list[str]:
    """Files, and the shipped configs by their names."""
    from argcomplete.completers import FilesCompleter
    folder = _package() / '.mim' / 'configs'
    return [*FilesCompleter(('py',))(prefix, **kwargs),
            *sorted(path.relative_to(folder).with_suffix('').as_posix() for path in folder.glob('[!_]*/*.py'))]


COMPLETERS = {'model': _models, 'patterns': _models, 'pattern': _models, 'backbone': _models, 'config': _configs}  # by destination
