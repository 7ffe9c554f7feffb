"""The CSV of results: a row a training."""
import csv
from pathlib import Path

from vitzoo_runtime.files import replacing

from .plan import TASKS, Key

METRICS = [metric for task in TASKS.values() for metric in task.metrics]
# params and macs are those of the backbone on a scene, or of the classifier on a crop: `input` says which
COLUMNS = ['model', 'task', 'seed', *METRICS, 'params', 'macs', 'input', 'total_params', 'iterations', 'batch', 'cpu_seconds',
           'wall_seconds', 'vitzoo', 'torch', 'timm']


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of the CSV, as text; none if there is no file. ValueError if its columns are others."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != COLUMNS:
        raise ValueError(f'{path} has the columns {reader.fieldnames}, expected {COLUMNS}; move it away or choose another file')
    return rows


def row_key(row: dict) -> Key:
    return row['model'], row['task'], int(row['seed'])


def append_row(path: str | Path, row: dict) -> None:
    """Add a row, in the place of one with the same key. Several processes may do so at once; readers see a whole file at any time."""
    import fcntl
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f'.{path.name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however it ends
        rows = [r for r in read_rows(path) if row_key(r) != row_key(row)] + [row]
        with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
