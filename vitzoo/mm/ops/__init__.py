"""mmcv's operators without a compiler: serves `_ext.py`, a stand-in on torch and torchvision, as the module `mmcv._ext`.

mmcv-lite holds every Python wrapper of `mmcv.ops` but not the compiled module that they call, so `import mmdet.apis` or
`mmseg.apis` ends with `No module named 'mmcv._ext'`. `activate` lets Python find the stand-in under that name; it has to run before the
first import of `mmcv.ops`, in every process that is not forked from one where it ran. A compiled extension is always found first.

Neither mmcv nor torch is imported by this module itself.
"""
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

__all__ = ['activate', 'backend']

NAME = 'mmcv._ext'
STAND_IN = Path(__file__).with_name('_ext.py')


class VitzooMmcvExtFinder:
    """Meta-path finder that answers for `mmcv._ext` alone; last in line, so that anything installed comes first."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        return importlib.util.spec_from_file_location(NAME, STAND_IN) if fullname == NAME else None


def activate() -> str:
    """Make `import mmcv._ext` work and say what it gives: 'compiled' where mmcv was compiled, else 'stand-in'.

    Idempotent. Whether mmcv is installed at all is left to whoever imports it.
    """
    if backend() == 'none':
        sys.meta_path.append(VitzooMmcvExtFinder)
    return backend()


def backend() -> str:
    """What `mmcv._ext` is or would be now: 'compiled', 'stand-in', or 'none' (not compiled and not activated)."""
    if NAME in sys.modules:
        return vars(sys.modules[NAME]).get('BACKEND', 'compiled')
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv and importlib.machinery.PathFinder.find_spec(NAME, mmcv.submodule_search_locations):
        return 'compiled'
    # by name: the finder may come from the start-up file of vitzoo.mm.enable; it answers nothing if vitzoo has moved since
    active = any(getattr(f, '__name__', '') == VitzooMmcvExtFinder.__name__ and f.find_spec(NAME) for f in sys.meta_path)
    return 'stand-in' if active else 'none'
