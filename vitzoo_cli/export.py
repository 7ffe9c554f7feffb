"""Export a model to ONNX and check the file in ONNX Runtime.

The file carries what "vitzoo predict --onnx" needs: image size, mean, deviation, class names. It is kept only if it gives what PyTorch
gives. Without --checkpoint and --pretrained the weights are random, and the file says so. An ONNX file that this command wrote is replaced,
another file only with --force.

With --config and --checkpoint instead of a name, a trained model of MMDetection, MMSegmentation or configs/classification is exported as a
whole: boxes, scores, labels and masks, or logits of every pixel, or of the image.
"""
import argparse
from pathlib import Path

from vitzoo_runtime.files import refuse_to_replace

from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .models import add_reduce, count, size
    parser.add_argument('model', nargs='?', metavar='MODEL', help='registered name, ours or timm\'s')
    parser.add_argument('--config', metavar='FILE', help='a config, as of "vitzoo train", instead of MODEL; needs '
                        '--checkpoint and --size')
    parser.add_argument('--out', required=True, metavar='FILE', help='the ONNX file to write')
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--checkpoint', metavar='FILE', help='weights, in any published layout')
    weights.add_argument('--pretrained', action='store_true', help='download the published weights of the tag')
    parser.add_argument('--size', type=size, metavar='HxW', help="of the images (default: the model's own)")
    parser.add_argument('--opset', type=int, default=20, help='default: %(default)s')
    parser.add_argument('--features', action='store_true', help='the feature maps of strides 4 to 32 instead of the classifier')
    parser.add_argument('--dynamic-size', action='store_true', help='accept other heights and widths')
    parser.add_argument('--static-batch', action='store_true', help='accept one image at a time alone')
    parser.add_argument('--num-classes', type=count, metavar='N', help="if not the model's own number")
    parser.add_argument('--classes', metavar='FILE', help="text file with the names of the classes, one a line, first to last (default: "
                        "ImageNet's, if the weights are those of a model for as many classes)")
    parser.add_argument('--precision', choices=('fp32', 'int8', 'int8-static', 'fp16'), default='fp32',
                        help='int8 is kept if it is faster here, and every other if its outputs stay close (default: %(default)s)')
    parser.add_argument('--calibration', metavar='FOLDER', help='images on which a smaller precision is compared with fp32, and from which '
                        "int8-static has its ranges (default: scikit-learn's and matplotlib's photographs, and digit scenes)")
    parser.add_argument('--force-precision', action='store_true', help='keep a file that is slower than fp32 or drifts too far')
    add_reduce(parser)
    parser.add_argument('--force', action='store_true', help='replace a file that is no earlier export')


def run(args: argparse.Namespace, output: Output) -> int:
    import timm

    from vitzoo import DenseBackbone, export_onnx, load_checkpoint

    from . import models
    if bool(args.model) == bool(args.config):
        raise ValueError('give either MODEL or --config FILE')
    precision = _precision(args)
    refuse_to_replace([args.out], filter(None, (args.checkpoint, args.config, args.classes)), args.force)
    if args.config:
        return _export_config(args, output)
    models.known(args.model)
    if args.features and (args.classes or args.num_classes is not None):
        raise ValueError('--features has no classes; leave out --classes and --num-classes')
    names = _read_names(args.classes) if args.classes else None
    if args.checkpoint:
        models.allow_runner_checkpoints(args.checkpoint)
    if args.features:
        model = DenseBackbone(args.model, pretrained=args.pretrained, checkpoint_path=args.checkpoint,
                              reduction=models.reduction(args.reduce))
        config = model.model.pretrained_cfg
    else:
        # a number of classes other than that of published weights would put a random classifier in place of theirs
        num_classes = None if args.pretrained else args.num_classes or (names and len(names))
        model = timm.create_model(args.model, pretrained=args.pretrained, **({} if num_classes is None else {'num_classes': num_classes}))
        config = model.pretrained_cfg
        if args.reduce:
            models.reduce(model, args.reduce)
        for what, number in ('--classes', names and len(names)), ('--num-classes', args.num_classes):
            if number is not None and number != model.num_classes:
                raise ValueError(f'{what} says {number} classes, the model has {model.num_classes}')
        if args.checkpoint:
            load_checkpoint(model, args.checkpoint)
    trained = bool(args.checkpoint or args.pretrained)
    if not trained:
        output.note('vitzoo: no weights given: the file will hold random ones (--checkpoint FILE or --pretrained)')
    report = export_onnx(
        model, args.out, (config['input_size'][0], *args.size) if args.size else tuple(config['input_size']), opset=args.opset,
        dynamic_batch=not args.static_batch, dynamic_size=args.dynamic_size, **precision,
        class_names=names, weights='loaded' if trained else 'random', source=Path(args.checkpoint).name if args.checkpoint else None,
        progress=not output.as_json)
    if args.checkpoint and not names and report.metadata['class_names']:
        output.note("vitzoo: the classes are taken for ImageNet's, which has as many; --classes FILE names others")
    output.json(report.to_dict())
    output.rich(report)
    return 0


def _export_config(args: argparse.Namespace, output: Output) -> int:
    if not args.checkpoint or not args.size:
        raise ValueError('--config needs --checkpoint FILE and --size HxW, that of the images as the model is to see them')
    if args.pretrained or args.reduce or args.features or args.classes or args.num_classes is not None or args.dynamic_size:
        raise ValueError('--config goes with --checkpoint, --size, --opset, --static-batch and --precision alone')
    from vitzoo import export_onnx

    from .mm_predictor import MmPredictor
    output.note('loading PyTorch and the model ...')
    loaded = MmPredictor(args.config, args.checkpoint, 0)
    names = None
    if loaded.task == 'classification':
        model, names = loaded.model.model, loaded.classes
    else:
        from vitzoo.mm import deploy
        model = (deploy.detector if loaded.task == 'detection' else deploy.segmentor)(loaded.model, args.size)
    report = export_onnx(
        model, args.out, args.size, opset=args.opset, dynamic_batch=not args.static_batch and loaded.task != 'detection',
        class_names=names, weights='loaded', source=Path(args.checkpoint).name, **_precision(args), progress=not output.as_json)
    output.json(report.to_dict())
    output.rich(report)
    return 0


def _precision(args: argparse.Namespace) -> dict:
    if args.precision == 'fp32' and (args.calibration or args.force_precision):
        raise ValueError('--calibration and --force-precision go with --precision int8, int8-static or fp16')
    return dict(precision=args.precision, calibration=args.calibration, force_precision=args.force_precision)


def _read_names(path: str) -> list[str]:
    try:
        names = [line.strip() for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f'{path}: the names of the classes cannot be read ({getattr(e, "strerror", None) or e})') from e
    if not names:
        raise ValueError(f'{path}: expected the names of the classes, one a line')
    return names
