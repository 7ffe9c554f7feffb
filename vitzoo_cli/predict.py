"""Predict what is in images, and draw it.

With --onnx a file of "vitzoo export" is run in ONNX Runtime, without PyTorch: the likeliest classes of every image, its objects or regions,
or a picture of its feature maps. With --config and --checkpoint a detector of MMDetection, a segmentor of MMSegmentation or a classifier
from configs/classification is run. Folders are searched for images, hidden files and folders left out. --out gets a picture for every image
(and its label map, NAME.labels.png, from a segmentor), and predictions.json. What an earlier run wrote there is replaced, other files only
with --force. Images that cannot be read, and pictures that cannot be written, are reported and skipped, and so are pictures of other kinds
in folders, such as GIF. Of very many objects the picture shows the clearest.
"""
import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitzoo_runtime.files import MARK, refuse_to_replace, write_json
from vitzoo_runtime.terminal import printable

from .files import LABELS, find_images, make_folder, other_pictures
from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--onnx', metavar='FILE', help='a file written by "vitzoo export"')
    parser.add_argument('--config', metavar='FILE', help='a config, as of "vitzoo train"')
    parser.add_argument('--checkpoint', metavar='FILE', help='the weights for --config')
    parser.add_argument('--threshold', type=float, default=.3, metavar='SCORE', help='detections below are left out (default: %(default)s)')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for pictures and predictions.json')
    parser.add_argument('--force', action='store_true', help='replace images and files that are not from an earlier run')


def run(args: argparse.Namespace, output: Output) -> int:
    from vitzoo_runtime.images import read_image
    from vitzoo_runtime.pictures import save_png
    if bool(args.onnx) == bool(args.config or args.checkpoint) or bool(args.config) != bool(args.checkpoint):
        raise ValueError('give either --onnx FILE or both --config FILE and --checkpoint FILE')
    if not 0 <= args.threshold <= 1:
        raise ValueError(f'--threshold {args.threshold}: expected 0 to 1')
    pictures = find_images(args.images, args.out)
    others, notes = other_pictures(args.images)
    _refuse_to_replace(pictures, args)
    if args.onnx:
        from .onnx_predictor import OnnxPredictor
        predictor = OnnxPredictor(args.onnx, args.threshold)
    else:
        from .mm_predictor import MmPredictor
        output.note('loading PyTorch and the model ...')
        predictor = MmPredictor(args.config, args.checkpoint, args.threshold)
    out = make_folder(args.out)

    results, failed = [], []
    for path, name in output.progress(list(pictures.items()), 'predicting'):
        try:
            found, drawn = predictor(read_image(path))
            make_folder((out / name).parent)
            files = {kind: out / (name if kind == 'picture' else name.with_suffix(LABELS)) for kind in drawn}
            for kind, picture in drawn.items():
                save_png(picture, files[kind])
        except Exception as e:  # whatever decoders, models and file systems stumble over
            failed.append({'image': str(path), 'error': f'{type(e).__name__}: {printable(" ".join(str(e).split()), 500)}'})
            continue
        results.append({'image': str(path), **found, **{kind: str(file) for kind, file in files.items()}})
    report = {'comment': MARK, **predictor.about, 'images': results, 'failed': failed, 'left_out': [str(path) for path in others]}
    write_json(out / 'predictions.json', report)
    output.json(report)
    output.table(f'{len(results)} images, pictures and predictions.json in {out}', ('image', *predictor.columns),
                 _rows(results, predictor), right=predictor.right)
    if predictor.about.get('weights') == 'random':
        output.note('vitzoo: the weights of this file are random: what it finds means nothing')
    if crowded := [result for result in results if 'drawn' in result]:
        notes.append(f'{len(crowded)} of the pictures show the clearest objects alone, as there are up to '
                     f'{max(len(result["objects"]) for result in crowded)}: predictions.json has all, a higher --threshold finds fewer')
    for note in notes:
        output.note(f'vitzoo: {note}')
    for failure in failed:
        output.note(f'vitzoo: {failure["image"]} was skipped ({failure["error"]})')
    return 1 if failed else 0


def _refuse_to_replace(pictures: dict[Path, Path], args: argparse.Namespace) -> None:
    """Raises ValueError, see there, before anything is read."""
    out = Path(args.out)
    if (out / 'predictions.json').is_dir():
        raise ValueError(f'{out / "predictions.json"} is a folder: choose another --out.')
    outputs = [out / name for picture in pictures.values() for name in (picture, picture.with_suffix(LABELS))]
    inputs = [*pictures, *filter(None, (args.onnx, args.config, args.checkpoint))]
    refuse_to_replace([*outputs, out / 'predictions.json'], inputs, args.force)


def _rows(results: Sequence[dict], predictor, most: int = 50) -> list[tuple]:
    """The table's lines, each with its image; long runs are cut, predictions.json has them all."""
    names = Counter(Path(result['image']).name for result in results)
    rows = []
    for result in results[:most]:
        name = Path(result['image']).name
        rows += [(name if names[name] == 1 else result['image'], *cells) for cells in predictor.lines(result)]
    if len(results) > most:
        rows.append((f'and {len(results) - most} more', *[''] * len(predictor.columns)))
    return rows
