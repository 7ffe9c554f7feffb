"""The folder that a command writes to, and the images that it is given."""
import os
from collections.abc import Sequence
from pathlib import Path

from vitzoo_runtime.files import OTHERS, SUFFIXES, images_below

LABELS = '.labels.png'  # of a segmentor's label map, beside the picture


def make_folder(path: str | Path) -> Path:
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f'{path}: this folder cannot be made ({e.strerror}); choose another --out.') from e
    return path


def check_picture(out: str | Path, option: str = '--out') -> Path:
    """Where a PNG file shall go. Raises ValueError unless it ends so, and lies in a folder that exists."""
    path = Path(out)
    if path.suffix.lower() != '.png':
        raise ValueError(f'{option} {out}: expected a name that ends in .png')
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f'{option} {out}: expected a file in a folder that exists')
    return path


def find_images(paths: Sequence[str], out: str | Path | None = None) -> dict[Path, Path]:
    """All images among `paths` and below the folders there, each with a file name (below `out`, unique) for its picture.

    What lies below `out` is no input: it is what an earlier run left. Nor is what is hidden (`images_below`).

    Raises ValueError where a path does not exist, or if there is no image at all.
    """
    out, found = None if out is None else Path(out).resolve(), {}
    for start in map(Path, paths):
        if not os.path.exists(start):
            raise ValueError(f'{start}: no such file or folder.')
        if start.is_file():
            found.setdefault(start, Path(start.name))
            continue
        for path in images_below(start):
            if out not in path.resolve().parents:
                found.setdefault(path, path.relative_to(start))
    if not found:
        outside = '' if out is None else f' outside {out}'
        raise ValueError(f'{", ".join(map(str, paths))}: no image found{outside}. Expected files that end in {", ".join(SUFFIXES)}.'
                         + ''.join(f' {note}.' for note in other_pictures(paths)[1]))
    pictures, taken = {}, set()
    for path, name in found.items():
        name, number = name.with_suffix('.png'), 2
        first = name
        while {name, name.with_suffix(LABELS)} & taken:
            name, number = first.with_stem(f'{first.stem}-{number}'), number + 1
        taken |= {name, name.with_suffix(LABELS)}
        pictures[path] = name
    return pictures


def other_pictures(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The pictures below the folders of `paths` that `find_images` leaves out because of their kind, and a note of it if there are any."""
    found = [path for start in map(Path, paths) if start.is_dir() for path in images_below(start, OTHERS)]
    some = ', '.join([*(path.name for path in found[:3]), *([f'and {len(found) - 3} more'] if len(found) > 3 else [])])
    return found, [f'pictures of other kinds were left out: {some}; convert them to PNG or JPEG'] if found else []
