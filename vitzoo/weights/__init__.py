"""Weights: files (read safely), layouts (published names to ours, as data), and `load_checkpoint`, the one door into a model."""
from .adapt import Positions
from .files import local_file, read_file, read_meta
from .layout import Conversion, Layout
from .load import LoadReport, load_checkpoint, rename_published

__all__ = [
    'Conversion', 'Layout', 'LoadReport', 'Positions', 'load_checkpoint', 'local_file', 'read_file', 'read_meta', 'rename_published',
]
