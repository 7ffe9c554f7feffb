"""`python -m vitzoo.mm.enable`: let plain `import mmdet.apis` find the stand-in for mmcv's operators, in every program of this Python.

Opt-in. Needed only where mmdet or mmseg is imported before vitzoo.mm, as in their own tools and notebooks. It writes one file into
site-packages, a `.pth` file whose single line Python runs when it starts: it appends the finder of `vitzoo.mm.ops` to `sys.meta_path`
without importing vitzoo or torch, so other programs pay nothing, and a compiled mmcv is still found first. `--disable` removes it.
"""
import argparse
import os
import sysconfig
from pathlib import Path

from .ops import NAME, STAND_IN, VitzooMmcvExtFinder

__all__ = ['disable', 'enable']

FILE = 'vitzoo_mmcv_ext.pth'


def _line() -> str:
    """The finder as one line that stands on its own; it finds nothing once the stand-in is gone (vitzoo moved or uninstalled)."""
    name, file = ascii(VitzooMmcvExtFinder.__name__), ascii(str(STAND_IN))
    found = (f'__import__("importlib.util").util.spec_from_file_location(name, {file}) '
             f'if name == {NAME!r} and __import__("os").path.exists({file}) else None')
    find_spec = f'staticmethod(lambda name, path=None, target=None: {found})'
    return f'import sys; sys.meta_path.append(type({name}, (), dict(find_spec={find_spec})))\n'


def _file(folder: str | Path | None) -> Path:
    return Path(folder or sysconfig.get_path('purelib')) / FILE


def enable(folder: str | Path | None = None) -> Path:
    """Write the start-up file into `folder` (default: site-packages of this Python) and return where it is. Idempotent."""
    file = _file(folder)
    temporary = file.with_suffix('.tmp')
    try:
        temporary.write_text(_line(), encoding='ascii')
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
