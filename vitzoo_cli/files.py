"""The folder that a command writes to, and the images that it is given."""
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def make_folder(path: str | Path) -> Path:
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f'{path}: this folder cannot be made ({e.strerror}); choose another --out.') from e
    return path


def find_images(paths: Sequence[str], out: str | Path) -> dict[Path, Path]:
    """All images among `paths` and below the folders there, each with a file name (below `out`, unique) for its picture.

    What lies below `out` is no input: it is what an earlier run left.

    Raises ValueError where a path does not exist, or if there is no image at all.
    """
    out, found = Path(out).resolve(), {}
    for start in map(Path, paths):
        if not start.exists():
            raise ValueError(f'{start}: no such file or folder.')
        if start.is_file():
            found.setdefault(start, Path(start.name))
            continue
        for path in sorted(start.rglob('*')):
            if path.suffix.lower() in SUFFIXES and path.is_file() and out not in path.resolve().parents:
                found.setdefault(path, path.relative_to(start))
    if not found:
        raise ValueError(f'{", ".join(map(str, paths))}: no image found. Expected files that end in {", ".join(SUFFIXES)}.')
    pictures, taken = {}, set()
    for path, name in found.items():
        name, number = name.with_suffix('.png'), 2
        first = name
        while name in taken:
            name, number = first.with_stem(f'{first.stem}-{number}'), number + 1
        taken.add(name)
        pictures[path] = name
    return pictures
