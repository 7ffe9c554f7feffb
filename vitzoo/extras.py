"""Optional dependencies, imported where they are used, with an error that says what to install."""
import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise ImportError naming the extra of vitzoo that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise ImportError(f'{module} could not be imported ({e}); it comes with: pip install "vitzoo[{extra}]"') from e
