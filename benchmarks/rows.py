"""CSV files of results that several processes add to: a row for each measurement."""
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from vitzoo_runtime.files import replacing


def read(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the CSV, as text; none if there is no file. ValueError if its columns are others."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != list(columns):
        raise ValueError(f'{path} has the columns {reader.fieldnames}, expected {list(columns)}; move it away or choose another file')
    return rows


def write(path: str | Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def append(path: str | Path, columns: Sequence[str], row: dict, key: Callable[[dict], tuple]) -> None:
    """Add a row, in the place of one with the same key. Several processes may do so at once; readers see a whole file at any time."""
    import fcntl
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f'.{path.name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however it ends
        write(path, columns, [*(r for r in read(path, columns) if key(r) != key(row)), row])
