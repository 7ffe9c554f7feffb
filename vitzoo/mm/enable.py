"""`python -m vitzoo.mm.enable`: let plain `import mmdet.apis` find the stand-in for mmcv's operators, and mmengine our configs, in every
program of this Python.

Opt-in. Needed only where mmdet or mmseg is imported, or a config with `_base_ = 'vitzoo::...'` read, before vitzoo.mm, as in their own
tools and notebooks. It writes one file into site-packages, a `.pth` file whose two lines Python runs when it starts. The first appends the
finder of `vitzoo.mm.ops` to `sys.meta_path`, so that a compiled mmcv is still found first; the second runs `vitzoo.mm.shipped` as soon as
mmengine is imported. Neither imports vitzoo or torch, so other programs pay nothing. `--disable` removes the file.
"""
import argparse
import os
import sysconfig
from pathlib import Path

from . import shipped
from .ops import NAME, STAND_IN, VitzooMmcvExtFinder

__all__ = ['disable', 'enable']

FILE = 'vitzoo_mmcv_ext.pth'


def _lines() -> str:
    """Each stands on its own, and finds nothing once the file that it needs is gone (vitzoo moved or uninstalled)."""
    file = ascii(str(STAND_IN))
    stand_in = (f'__import__("importlib.util").util.spec_from_file_location(name, {file}) '
                f'if name == {NAME!r} and __import__("os").path.exists({file}) else None')
    # the last module that mmengine imports of its own accord, behind its configs
    file = ascii(shipped.__file__)
    configs = (f'__import__("runpy").run_path({file})["register_configs"]() '
               f'if name == "mmengine.version" and __import__("os").path.exists({file}) else None')
    return (f'import sys; sys.meta_path.append({_finder(VitzooMmcvExtFinder.__name__, stand_in)})\n'
            f'import sys; sys.meta_path.insert(0, {_finder("VitzooConfigsFinder", configs)})\n')


def _finder(name: str, find_spec: str) -> str:
    """A meta-path finder as an expression."""
    return f'type({name!r}, (), dict(find_spec=staticmethod(lambda name, path=None, target=None: {find_spec})))'


def _file(folder: str | Path | None) -> Path:
    return Path(folder or sysconfig.get_path('purelib')) / FILE


def enable(folder: str | Path | None = None) -> Path:
    """Write the start-up file into `folder` (default: site-packages of this Python) and return where it is. Idempotent."""
    file = _file(folder)
    temporary = file.with_suffix('.tmp')
    try:
        temporary.write_text(_lines(), encoding='ascii')
        os.replace(temporary, file)
    except OSError as e:
        raise ValueError(f'cannot write {file} ({e.strerror}); expected a site-packages folder that you may write to, as a virtual '
                         'environment has; or import vitzoo.mm before mmdet and mmseg instead') from e
    finally:
        temporary.unlink(missing_ok=True)
    return file


def disable(folder: str | Path | None = None) -> Path | None:
    """Remove the start-up file; return where it was, or None if there was none."""
    file = _file(folder)
    try:
        file.unlink()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ValueError(f'cannot remove {file} ({e.strerror}); remove it by hand') from e
    return file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m vitzoo.mm.enable', description=__doc__.split('\n\n')[0])
    parser.add_argument('--disable', action='store_true', help='remove the start-up file')
    remove = parser.parse_args(argv).disable
    try:
        file = disable() if remove else enable()
    except ValueError as e:
        parser.exit(1, f'error: {e}\n')
    if remove:
        print(f'removed {file}' if file else f'nothing to remove: there is no {_file(None)}')
    else:
        print(f'wrote {file}; undo with: python -m vitzoo.mm.enable --disable')


if __name__ == '__main__':
    main()
