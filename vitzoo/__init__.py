"""vitzoo: efficient vision transformers that register in timm, train in OpenMMLab and export to ONNX.

Importing it registers the models with timm (`timm.create_model('svit_small')`) and needs torch and timm alone. The rest of the
public interface is imported when it is first used; what needs an extra says which one.
"""
import importlib

from . import models  # noqa: F401  (registers the models)

__version__ = '0.1.0'

# public name -> module that defines it
_PUBLIC = {
    'load_checkpoint': 'vitzoo.weights.load',
    'DenseBackbone': 'vitzoo.dense',
    'export_onnx': 'vitzoo.export',
    'profile': 'vitzoo.profiling',
}
__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted({*globals(), *_PUBLIC})
