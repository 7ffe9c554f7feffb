"""The model families, one file each. Importing this package registers them with timm."""
from importlib import import_module
from pkgutil import iter_modules

for _file in iter_modules(__path__):
    if not _file.name.startswith('_'):
        import_module(f'{__name__}.{_file.name}')
