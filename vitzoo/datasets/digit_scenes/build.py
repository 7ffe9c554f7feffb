"""A data set on disk: built, checked, reused, looked at; and the command that does it."""
import argparse
import errno
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

from vitzoo.extras import require
from vitzoo_runtime.files import refuse_to_replace, to_json
from vitzoo_runtime.masks import decode_rle
from vitzoo_runtime.terminal import LONGEST, command, printable

from .parts import MANIFEST, PARTS, WRITERS, Detection, Part
from .scenes import CLASSES, PRESETS, SEG_CLASSES, SEG_PALETTE, SPLITS, Preset, make_scene, resolve_preset, scene_bytes, source_digits

VERSION = 2  # of what is written; a folder with another version is rebuilt


@dataclass(frozen=True)
class DigitScenes:
    """Where a built data set lies. `status` says of every part that was asked for whether it was reused, or why it was built."""
    root: Path
    preset: Preset
    seed: int
    status: dict[str, str]
    classes: tuple[str, ...] = CLASSES
    seg_classes: tuple[str, ...] = SEG_CLASSES

    def annotations(self, split: str) -> Path:
        """COCO file; its images are in `images(split)`."""
        return self.root / 'detection' / 'annotations' / f'det_{split}.json'

    def images(self, split: str) -> Path:
        return self.root / 'detection' / split

    def seg_images(self, split: str) -> Path:
        return self.root / 'segmentation' / 'img_dir' / split

    def seg_maps(self, split: str) -> Path:
        return self.root / 'segmentation' / 'ann_dir' / split

    def crops(self, split: str) -> Path:
        """ImageFolder with one folder a class, named 0 to 9."""
        return self.root / 'classification' / split

    def manifest(self, part: str) -> dict:
        """What the folder of a part says of itself. Raises ValueError if that is damaged, and OSError."""
        return WRITERS[part].read_manifest(self.root / part)


def _flaw(folder: Path, specification: dict, part: type[Part]) -> str | None:
    """Why a part's folder cannot be used as it is, or None: every file that it should hold is there with its size and its CRC, and no
    picture beside them where those who train scan a folder. Files with other names are of no concern."""
    try:
        manifest = part.read_manifest(folder)
    except FileNotFoundError:
        return 'not there' if not folder.exists() else f'no {MANIFEST}'
    except (ValueError, OSError):
        return f'{MANIFEST} is damaged'
    files = manifest['files']
    if {key: manifest.get(key) for key in specification} != specification:
        return 'another preset, seed or version'
    if {*manifest['objects']} != {*SPLITS}:
        return f'{MANIFEST} is damaged'
    extra = next((name for name in _names(folder) if name not in files and part.is_extra(name)), None)
    if extra:
        return f'{printable(extra)} does not belong there'
    for name, (size, crc) in files.items():
        path = folder / name
        if not path.is_file():
            return f'{name} is missing'
        if path.stat().st_size != size or zlib.crc32(path.read_bytes()) != crc:
            return f'{name} is damaged'
    return None


def _names(folder: Path) -> list[str]:
    """All files below a folder, relative, with forward slashes."""
    return [os.path.relpath(os.path.join(path, file), folder).replace(os.sep, '/') for path, _, names in os.walk(folder) for file in names]


def _refuse_foreign(folder: Path, part: type[Part]) -> None:
    """ValueError where replacing a folder would delete what was not written here."""
    if folder.is_symlink() or folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is not an ordinary folder; remove it or choose another root')
    for name in _names(folder):
        if name != MANIFEST and not part.writes(name):
            raise ValueError(f'{folder} is to be rebuilt, but {printable(name)} in it was not written by digit_scenes; '
                             'move it away or choose another root')


def _install(built: Path, target: Path, specification: dict, part: type[Part]) -> None:
    """Move a finished folder to its place. Of several processes one wins, and the others find its folder complete."""
    while True:
        try:
            os.rename(built, target)  # replaces nothing but an empty folder
            return
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or e.errno == errno.EACCES and not target.exists():
                raise
        if _flaw(target, specification, part) is None:
            shutil.rmtree(built)
            return
        old = target.with_name(f'.old-{target.name}-{uuid4().hex[:12]}')
        try:
            os.rename(target, old)
        except FileNotFoundError:
            continue  # another process was quicker
        shutil.rmtree(old, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what a killed process left behind: nobody builds for an hour."""
    for path in [*root.glob('.building-*'), *root.glob('.old-*')]:
        if re.fullmatch(rf'\.(building|old)-({"|".join(PARTS)})-[0-9a-f]{{12}}', path.name) and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def build(root: str | Path, preset: str | Preset = 'standard', seed: int = 0, *, parts: Sequence[str] = PARTS, progress: bool = True,
          **overrides) -> DigitScenes:
    """Make sure that the parts lie below `root`, complete, for this preset and seed; what is there already is checked and reused.

    A part is a folder of its own (`root/detection`, ...). It is written beside its place and renamed when it is complete, so that it is
    there as a whole or not at all; an interrupted build leaves the previous one untouched. A folder that is damaged (a file missing, too
    many or with other bytes than were written) or belongs to another preset, seed or version is replaced, unless it holds files that were
    not written here.

    Args:
        root: folder, made if needed.
        preset: a name in `PRESETS` or a `Preset`; `overrides` replace numbers of it (`det_train=50`).
        seed: 0 to 2**32 - 1.
        parts: some of 'detection', 'segmentation', 'classification'.
        progress: whether to show a progress bar (on stderr).

    Raises:
        ValueError: bad argument, a root that is a file, or a folder to be replaced that holds foreign files; before anything is written.
        ImportError: scikit-learn or pillow is missing (extra `viz`).
    """
    preset = resolve_preset(preset, **overrides)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2 ** 32:
        raise ValueError(f'seed {seed!r}: expected an integer from 0 to 2**32 - 1')
    if isinstance(parts, str) or not parts or not set(parts) <= set(PARTS):
        raise ValueError(f'parts {parts!r}: expected a sequence of some of {PARTS}')
    if not isinstance(root, str | os.PathLike) or not str(root):
        raise ValueError(f'root {root!r}: expected the path of a folder')
    root, seed = Path(root), int(seed)
    if root.exists() and not root.is_dir():
        raise ValueError(f'root {str(root)!r} is a file; expected a folder')

    specification = {'name': 'vitzoo digit scenes', 'version': VERSION, 'preset': asdict(preset), 'seed': seed}
    status = {}
    for name in dict.fromkeys(parts):
        flaw = _flaw(root / name, {**specification, 'part': name}, WRITERS[name])
        if flaw:
            _refuse_foreign(root / name, WRITERS[name])
        status[name] = f'built ({flaw})' if flaw else 'reused'
    missing = [name for name in status if status[name] != 'reused']
    if missing:
        source_digits(), require('PIL.Image', 'viz')
        _build(root, preset, seed, missing, specification, progress)
    return DigitScenes(root, preset, seed, status)


def _build(root: Path, preset: Preset, seed: int, names: list[str], specification: dict, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    parts = [WRITERS[name](root / f'.building-{name}-{uuid4().hex[:12]}') for name in names]
    num_train = {part.name: part.num_train(preset) for part in parts}
    numbers = {'train': max(num_train.values()), 'val': preset.val, 'test': preset.test}
    jobs = [(split, index) for split, number in numbers.items() for index in range(number)]
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            for split, index in bar.track(jobs, description='digit scenes'):
                scene = make_scene(preset, seed, split, index)
                for part in parts:
                    if split != 'train' or index < num_train[part.name]:
                        part.add(preset, split, index, scene)
                        part.digest.update(scene_bytes(scene))
        for part in parts:
            part_specification = {**specification, 'part': part.name}
            part.finish(part_specification)
            _install(part.folder, root / part.name, part_specification, type(part))
    finally:
        for part in parts:  # those that were installed are no longer there
            shutil.rmtree(part.folder, ignore_errors=True)


def preview(data: str | Path | DigitScenes, path: str | Path, *, split: str = 'val', num: int = 12, columns: int = 3,
            scale: int = 2) -> Path:
    """Draw a sheet of the first `num` scenes of the part `detection`: left as they are, right with visible masks, boxes and labels.

    Raises ValueError on a bad argument, and where the part is not there or damaged.
    """
    root = data.root if isinstance(data, DigitScenes) else Path(data)
    if split not in SPLITS:
        raise ValueError(f'split {split!r}: expected one of {SPLITS}')
    for name, value in ('num', num), ('columns', columns), ('scale', scale):
        if value < 1:
            raise ValueError(f'{name}={value}: expected at least 1')
    annotations = root / 'detection' / 'annotations' / f'det_{split}.json'
    if not annotations.is_file():
        raise ValueError(f'{annotations} does not exist; build the part detection below {root} first')
    try:
        Detection.read_manifest(root / 'detection')
        coco = json.loads(annotations.read_text(encoding='utf-8'))
        sheet = _sheet(coco, root / 'detection' / split, num, columns, scale)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as e:
        raise ValueError(f'the part detection below {root} is damaged ({type(e).__name__}); build it again') from e
    from vitzoo_runtime.pictures import save_png
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet, path)
    return path


def _sheet(coco: dict, folder: Path, num: int, columns: int, scale: int):
    """The picture that `preview` writes."""
    Image, ImageDraw = require('PIL.Image', 'viz'), require('PIL.ImageDraw', 'viz')
    images = coco['images'][:num]
    gap, rows = 4, -(-len(images) // columns)
    width, height = images[0]['width'] * scale, images[0]['height'] * scale
    sheet = Image.new('RGB', ((2 * width + 2 * gap) * columns - gap, (height + gap) * rows - gap), 'white')
    for i, image in enumerate(images):
        picture = np.asarray(Image.open(folder / image['file_name']).convert('RGB'))
        objects = [a for a in coco['annotations'] if a['image_id'] == image['id']]
        drawn = picture.copy()
        for a in objects:
            mask = decode_rle(a['segmentation'])
            drawn[mask] = drawn[mask] * 0.25 + np.array(SEG_PALETTE[a['category_id']]) * 0.75
        panels = [Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST) for array in (picture, drawn)]
        draw = ImageDraw.Draw(panels[1])
        for a in objects:
            x, y, w, h = (v * scale for v in a['bbox'])
            draw.rectangle((x, y, x + w - 1, y + h - 1), outline='white')
            draw.text((x + 2, y), f'{a["category_id"] - 1}', fill='white', stroke_width=1, stroke_fill='black')
        left, top = i % columns * (2 * width + 2 * gap), i // columns * (height + gap)
        sheet.paste(panels[0], (left, top))
        sheet.paste(panels[1], (left + width, top))
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    with command():
        try:
            return _main(argv)
        except BrokenPipeError:  # the reader (`| head`) has seen enough
            return 0


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog='python -m vitzoo.datasets.digit_scenes', description='Build the digit scenes.')
    parser.add_argument('--out', default='data/digit_scenes', help='folder (default: %(default)s)')
    parser.add_argument('--preset', default='standard', help=f'one of {", ".join(PRESETS)} (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--parts', nargs='+', default=PARTS, metavar='PART', help=f'some of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--set', nargs='+', default=[], metavar='NAME=NUMBER', help='other numbers than those of the preset')
    parser.add_argument('--preview', metavar='PNG', help='also draw some scenes with their boxes and masks')
    parser.add_argument('--force', action='store_true', help='replace a file that is no earlier preview')
    parser.add_argument('--json', action='store_true', help='print JSON, without a progress bar')
    args = parser.parse_args(argv)
    try:
        overrides = {}
        for item in args.set:
            name, separator, value = item.partition('=')
            if not separator:
                raise ValueError(f'--set {printable(item)}: expected NAME=NUMBER')
            try:
                overrides[name] = json.loads(value)
            except (ValueError, RecursionError) as e:
                raise ValueError(f'--set {printable(item)}: expected NAME=NUMBER') from e
        refuse_to_replace([args.preview] if args.preview else [], force=args.force)
        start = time.perf_counter()
        data = build(args.out, args.preset, args.seed, parts=args.parts, progress=not args.json, **overrides)
        seconds = time.perf_counter() - start
        picture = preview(data, args.preview) if args.preview else None
    except (ValueError, ImportError, OSError) as e:
        print(f'error: {printable(" ".join(str(e).split()), LONGEST)}', file=sys.stderr)
        return 2

    parts = {}
    for name, status in data.status.items():
        manifest = data.manifest(name)
        parts[name] = {'path': str(data.root / name), 'status': status, 'objects': manifest['objects'], 'files': len(manifest['files']),
                       'bytes': sum(size for size, _ in manifest['files'].values()), 'fingerprint': manifest['fingerprint']}
    if args.json:
        print(to_json({'root': str(data.root), 'seed': data.seed, 'preset': asdict(data.preset), 'seconds': round(seconds, 2),
                       'parts': parts, 'preview': picture and str(picture)}))
        return 0
    from rich.console import Console
    from rich.table import Table
    table = Table(title=f'digit scenes in {data.root}, {seconds:.1f} s', title_justify='left')
    for column in 'part', 'status', f'digits {" + ".join(SPLITS)}', 'files', 'MB':
        table.add_column(column, justify='left' if column in ('part', 'status') else 'right')
    for name, part in parts.items():
        table.add_row(name, part['status'], ' + '.join(str(part["objects"][split]) for split in SPLITS), str(part['files']),
                      f'{part["bytes"] / 1e6:.1f}')
    Console().print(table)
    return 0
