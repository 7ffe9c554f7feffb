"""The CSV of results: a row a training."""
from pathlib import Path

from .. import rows
from .plan import TASKS, Key

METRICS = [metric for task in TASKS.values() for metric in task.metrics]  # on the validation part
TESTED = [f'test_{metric}' for metric in METRICS]  # on the test part; empty in a row that is older than it
# params and macs are those of the backbone on a scene, or of the classifier on a crop: `input` says which
COLUMNS = ['model', 'task', 'seed', *METRICS, *TESTED, 'params', 'macs', 'input', 'total_params', 'iterations', 'batch', 'cpu_seconds',
           'wall_seconds', 'vitzoo', 'torch', 'timm']


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of the CSV, as text; none if there is no file. ValueError if its columns are others."""
    return rows.read(path, COLUMNS)


def row_key(row: dict) -> Key:
    return row['model'], row['task'], int(row['seed'])


def is_tested(row: dict) -> bool:
    return any(row[name] for name in TESTED)


def append_row(path: str | Path, row: dict) -> None:
    """Add a row, in the place of one with the same key."""
    rows.append(path, COLUMNS, row, row_key)
