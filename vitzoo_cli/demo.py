"""Train a small detector on real data, draw what it finds, export it and check the file.

Builds the digit scenes, trains Mask R-CNN with our smallest SViT from scratch, evaluates it on their test part, whose digits it has not
seen, draws what it finds there, exports the backbone to ONNX and compares it with PyTorch in ONNX Runtime. What an earlier run wrote to
--out is replaced, other files only with --force.
"""
import argparse
import contextlib
import os
import shlex
import sys
import time
import warnings
from pathlib import Path

from vitzoo_runtime.files import MARK, is_ours, refuse_to_replace, write_json

from .files import make_folder
from .output import Output
from .threads import choose_threads

FILES = {'pictures': 'predictions.png', 'ONNX': 'backbone.onnx', 'report': 'report.json', 'log': 'training.log'}
TRAINING = 'training'  # the folder of mmengine's files
CONFIG = 'detection/mask-rcnn_svit_micro_digits'
NUM_PICTURES = 12
SCORE = 0.5  # of what is drawn
BEST = 3  # drawn of each scene where nothing scores so high yet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--out', default='runs/demo', metavar='DIR', help='for all that is written (default: %(default)s)')
    parser.add_argument('--data', default='data/digit_scenes', metavar='DIR', help='for the digit scenes (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of training (default: %(default)s)')
    parser.add_argument('--iterations', type=int, metavar='N', help='of training, 4 scenes each (default: what the config says)')
    parser.add_argument('--preset', default='standard', help='of the data: standard, hard or micro (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace files that are not from an earlier run')


def run(args: argparse.Namespace, output: Output) -> int:
    if args.iterations is not None and args.iterations < 1:
        raise ValueError(f'--iterations {args.iterations}: expected at least 1')
    if not 0 <= args.seed < 2 ** 32:
        raise ValueError(f'--seed {args.seed}: expected 0 or more, below 2**32')
    _refuse_to_replace(Path(args.out), args.force)
    start = time.perf_counter()
    choose_threads()
    output.note('loading PyTorch and MMDetection ...')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # those libraries deprecate a lot on import
        import vitzoo.mm
        from vitzoo.datasets import digit_scenes
        from vitzoo.viz import contact_sheet
        from vitzoo_runtime.pictures import save_png
        config = vitzoo.mm.config_path(CONFIG)
        out = make_folder(args.out)
        building = time.perf_counter()
        data = digit_scenes.build(args.data, args.preset, parts=['detection'], progress=not output.as_json)
        built = time.perf_counter() - building
        trained = _train(config, data.root, out, args.seed, args.iterations, output)

        output.note('drawing ...')
        found = [sample.pred_instances.cpu() for sample in trained['samples']]
        sure = any((one.scores >= SCORE).any() for one in found)
        shown = [one[one.scores >= SCORE] if sure else one[one.scores.argsort(descending=True)[:BEST]] for one in found]
        save_png(contact_sheet([_draw(sample, one, digit_scenes.CLASSES) for sample, one in zip(trained['samples'], shown, strict=True)],
                               columns=3), out / FILES['pictures'])
        output.note('exporting ...')
        preset = data.preset
        report = vitzoo.export_onnx(trained['backbone'], out / FILES['ONNX'], (preset.height, preset.width), source='vitzoo demo',
                                    weights='loaded', progress=not output.as_json)

    counts = data.manifest('detection')['objects']
    # where nothing at all was found, the evaluation has no figures
    metrics = {key: float(trained['metrics'].get(f'coco/{key}', 0)) for key in ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')}
    files = {**trained['files'], **{kind: out / name for kind, name in FILES.items()}}
    files = {name: str(path) for name, path in files.items()}
    result = {
        'comment': MARK,
        'seed': args.seed, 'config': CONFIG,
        'data': {'root': str(data.root), 'train': preset.det_train, 'test': preset.test, 'objects': counts, 'seconds': built},
        'training': {key: trained[key] for key in ('iterations', 'batch', 'seconds', 'params')},
        'evaluation': {'box_mAP': metrics['bbox_mAP'], 'box_mAP50': metrics['bbox_mAP_50'], 'mask_mAP': metrics['segm_mAP'],
                       'mask_mAP50': metrics['segm_mAP_50'], 'seconds': trained['test_seconds']},
        'onnx': report.to_dict(), 'files': files, 'seconds': time.perf_counter() - start,
    }
    result['next'] = _next_commands(files, out, data.root / 'detection' / 'test', preset)
    write_json(out / FILES['report'], result)
    output.json(result)
    evaluation, latency = result['evaluation'], report.latency_ms
    output.facts(f'vitzoo demo: {result["seconds"]:.0f} s', {
        'data': f'{preset.det_train} scenes to train ({counts["train"]} digits), {preset.test} to test ({counts["test"]}); '
                f'{data.root}, {data.status["detection"].split()[0]} in {built:.0f} s',
        'model': f'Mask R-CNN with svit_micro, {trained["params"] / 1e6:.1f} M parameters, from scratch',
        'training': f'{trained["iterations"]} iterations of {trained["batch"]} scenes in {trained["seconds"]:.0f} s',
        'box mAP': f'{evaluation["box_mAP"]:.3f}   mAP50 {evaluation["box_mAP50"]:.3f}',
        'mask mAP': f'{evaluation["mask_mAP"]:.3f}   mAP50 {evaluation["mask_mAP50"]:.3f}',
        'ONNX backbone': f'{report.nodes} nodes, {report.file_size / 1e6:.1f} MB, differs from PyTorch by {report.max_error:.1e} of the '
                         'largest value',
        'latency': f'PyTorch {latency["pytorch"]:.1f} ms, ONNX Runtime {latency["onnxruntime"]:.1f} ms (one scene, one thread)',
        'drawn': f'what scores {SCORE} and more' if sure else f'the best {BEST} of each scene: nothing scores {SCORE} so early',
        **files,
    })
    output.note('Go on with:')
    for command in [*_activation(), *result['next']]:
        output.note(f'  {command}')
    return 0


def _next_commands(files: dict[str, str], out: Path, scenes: Path, preset) -> list[str]:
    """What can be done with the trained detector, as lines for a shell."""
    trained = ['--config', files['config'], '--checkpoint', files['checkpoint']]
    onnx = str(out / 'detector.onnx')
    return [shlex.join(['vitzoo', *command]) for command in (
        ['predict', str(scenes), *trained, '--out', str(out / 'seen')],
        ['export', *trained, '--size', f'{preset.height}x{preset.width}', '--out', onnx],
        ['predict', str(scenes), '--onnx', onnx, '--out', str(out / 'seen_onnx')],
    )]


def _activation() -> list[str]:
    """The line without which a shell does not know this environment's commands, where it is needed."""
    if sys.prefix == sys.base_prefix or os.environ.get('VIRTUAL_ENV') == sys.prefix:
        return []
    prefix = Path(sys.prefix)
    return [shlex.join(['source', str((prefix.relative_to(Path.cwd()) if prefix.is_relative_to(Path.cwd()) else prefix) / 'bin/activate')])]


def _refuse_to_replace(out: Path, force: bool) -> None:
    """Raise ValueError where a file or the folder of training in `out` is not from an earlier run, which is known by its log."""
    refuse_to_replace([out / name for name in FILES.values()], force=force)
    training = out / TRAINING
    if os.path.lexists(training) and not force and not is_ours(out / FILES['log']) and (not training.is_dir() or any(training.iterdir())):
        raise ValueError(f'{training} exists and is not from an earlier demo: choose another --out, or --force to write into it')


def _train(config: Path, data: Path, out: Path, seed: int, iterations: int | None, output: Output) -> dict:
    """Train and evaluate by mmengine's Runner; what it prints goes to a file."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    import vitzoo.mm

    class Watch(Hook):
        """Moves the bar, takes the times, and keeps the metrics and the first predictions."""
        priority = 'VERY_LOW'

        def before_train(self, runner):
            self.samples, self.metrics, self.times = [], {}, [time.perf_counter()]

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            advance(f'training, loss {float(outputs["loss"]):.2f}')

        def after_train(self, runner):
            self.times.append(time.perf_counter())

        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.samples += outputs[:NUM_PICTURES - len(self.samples)]
            advance('evaluating')

        def after_test_epoch(self, runner, metrics=None):
            self.metrics = metrics
            self.times.append(time.perf_counter())

    os.environ['DIGIT_SCENES'] = str(data.resolve())  # where the config looks
    # nothing is chosen here, so nothing is validated
    options = dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator')) | ({} if iterations is None else {
        'train_cfg.max_iters': iterations})
    folder, log = out / TRAINING, out / FILES['log']
    with log.open('w', encoding='utf-8') as stream, contextlib.redirect_stdout(stream):
        print(f'{MARK} demo', flush=True)
        cfg = vitzoo.mm.setup(config, cfg_options=options, work_dir=folder, seed=seed)
        runner = Runner.from_cfg(cfg)
        watch = Watch()
        runner.register_hook(watch)
        with output.bar('training', runner.max_iters + len(runner.build_dataloader(cfg.test_dataloader))) as advance:
            runner.train()
            runner.test()
    started, ended, evaluated = watch.times
    return {
        'iterations': runner.max_iters, 'batch': cfg.train_dataloader.batch_size, 'seconds': ended - started,
        'test_seconds': evaluated - ended, 'params': sum(p.numel() for p in runner.model.parameters()), 'metrics': watch.metrics,
        'samples': watch.samples, 'backbone': runner.model.backbone,
        'files': {'config': folder / config.name, 'checkpoint': folder / f'iter_{runner.max_iters}.pth'},
    }


def _draw(sample, found, classes):
    """A scene with what was found in it."""
    from PIL import Image

    from vitzoo.viz import draw_detections
    return draw_detections(Image.open(sample.img_path), found.bboxes.numpy(), found.labels.numpy(), found.scores.numpy(),
                           found.masks.numpy(), classes)
