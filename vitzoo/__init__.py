"""vitzoo: efficient vision transformers that register in timm, train in OpenMMLab and export to ONNX.

Importing it registers the models with timm (`timm.create_model('svit_small')`) and needs torch and timm alone. The rest of the
public interface, and every room of the package (`vitzoo.mm`, `vitzoo.dense`, ...), is imported when it is first used; what needs an extra
says which one.
"""
import importlib
import pkgutil

from vitzoo_runtime import __version__

from . import models  # noqa: F401  (registers the models)

# public name -> module that defines it
_PUBLIC = {
    'load_checkpoint': 'vitzoo.weights.load',
    'DenseBackbone': 'vitzoo.dense',
    'deploy': 'vitzoo.export.deploy',
    'export_onnx': 'vitzoo.export',
    'profile': 'vitzoo.profiling',
    'reduce_tokens': 'vitzoo.reduction',
    'restore_tokens': 'vitzoo.reduction',
    'token_map': 'vitzoo.token_maps',
}
__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name not in _rooms():
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return importlib.import_module(f'{__name__}.{name}')
    except ImportError as e:  # so that hasattr, help() and the like go on where an extra is missing
        raise AttributeError(f'{__name__}.{name}: {e}') from e


def __dir__():
    return sorted({*globals(), *_PUBLIC, *_rooms()})


def _rooms() -> set[str]:
    """The modules of this package."""
    return {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith('_')}
