"""Files that are written whole or not at all."""
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name in the folder of `path` to write to, which becomes `path` if all goes well and is gone if not."""
    path = Path(path)
    temporary = path.with_name(f'.{path.stem}.{uuid4().hex[:8]}{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, data: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding='utf-8')
