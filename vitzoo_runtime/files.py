"""Files that are written whole or not at all, and never in the place of somebody else's."""
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

MARK = 'made by vitzoo'  # in the first bytes of every file that a command writes, which may therefore be replaced by the next run
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')  # of images
OTHERS = ('.avif', '.dng', '.gif', '.heic', '.heif', '.ico', '.jfif', '.jp2', '.jxl', '.pgm', '.psd', '.svg', '.tga')  # that are not read


def temporary_name(path: str | Path) -> Path:
    """A new name in the folder of `path`, hidden and short, with its suffix."""
    path = Path(path)
    return path.with_name(f'.{uuid4().hex[:16]}{path.suffix[-16:]}')


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name in the folder of `path` to write to, which becomes `path` if all goes well and is gone if not."""
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_ours(path: str | Path) -> bool:
    """Whether a file bears the mark of one that a command wrote."""
    try:
        with open(path, 'rb') as file:
            return MARK.encode() in file.read(512)
    except OSError:
        return False


def refuse_to_replace(outputs: Iterable[str | Path], inputs: Iterable[str | Path] = (), force: bool = False) -> None:
    """Raise where writing `outputs` would destroy what a user has: an input, or a file that no command made. `force` allows both.

    Raises ValueError, with `force` too where something other than a file, such as a device, is in the place of one. Folders are left to
    whoever writes: nothing takes their place.
    """
    taken = {_identity(path) for path in inputs} - {None}
    for path in outputs:
        if not os.path.lexists(path) or os.path.isdir(path):
            continue
        if not os.path.isfile(path) and os.path.exists(path):
            raise ValueError(f'{path} is no ordinary file: choose another name to write to.')
        if force:
            continue
        if _identity(path) in taken:
            raise ValueError(f'{path} is an input and would be replaced: choose another --out, or --force.')
        if not is_ours(path):
            raise ValueError(f'{path} exists and was not made by this command: choose another --out, or --force to replace it.')


def _identity(path: str | Path) -> tuple[int, int] | None:
    """The same for all names of one file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino


def to_json(data: object) -> str:
    """JSON that every reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(data), indent=1, allow_nan=False)


def _finite(data: object) -> object:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def write_json(path: str | Path, data: object) -> None:
    """Write `data` by `to_json`, whole or not at all."""
    text = to_json(data)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def images_below(folder: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The image files in a folder and its folders, sorted. What is hidden is left out: names that begin with a dot are those of files that
    a killed program left half written, of thumbnails and the like."""
    folder = Path(folder)
    return [path for path in sorted(folder.rglob('*')) if path.suffix.lower() in suffixes and path.is_file()
            and not any(part.startswith('.') for part in path.relative_to(folder).parts)]
