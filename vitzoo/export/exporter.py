"""`vitzoo.export_onnx`: from a PyTorch model to an ONNX file that was run and compared."""
import io
import itertools
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from vitzoo_runtime.files import MARK, temporary_name

from ..arguments import check_range, check_types, show
from ..extras import require
from ..facts import image_shape, model_name
from ..profiling.latency import take_turns
from ..reduction import Reduced, setting_of
from . import drift, quantise, verify
from .deploy import deploy_form, inference_copy
from .report import ExportReport
from .simplify import simplify
from .steps import expected_seconds, progress_bar, stages_of_exporter
from .verify import Case, ExportError

TORCHSCRIPT_OPSET = 17  # the newest that the dynamo exporter cannot write
OPSETS = range(TORCHSCRIPT_OPSET, 24)
BATCHES = (1, 3)
FILE_LIMIT = 2**31 - 2**24  # protobuf holds 2 GiB; the rest is for the graph
_CHATTY = ('torch.onnx', 'torch.export', 'torch._export', 'torch.fx', 'torch._dynamo', 'onnxscript', 'onnx_ir')


@check_types
def export_onnx(
        model: nn.Module,
        path: str | os.PathLike,
        input_size: int | tuple[int, ...],
        *,
        opset: int = 20,
        dynamic_batch: bool = True,
        dynamic_size: bool = False,
        class_names: Sequence[str] | None = None,
        license: str | None = None,
        source: str | None = None,
        weights: str | None = None,
        precision: str = 'fp32',
        calibration: str | os.PathLike | Sequence[object] | None = None,
        force_precision: bool = False,
        rounds: int = 5,
        progress: bool = False,
) -> ExportReport:
    """Write a model as ONNX, compare it with PyTorch in ONNX Runtime, and keep the file only if they agree.

    The file holds a float32 copy in the form that `deploy_form` gives it; the model itself is not changed. Its input is `image`
    (batch, C, H, W), normalised; the outputs are `logits` of a classifier, else `feat0`, `feat1`, ... Agreement means finite values
    within 1e-5 of an output's largest value, at batches 1 and 3 (with `dynamic_size` at three other sizes too, one of them odd), for four
    fixed images a size. A model that says it chooses (`model.selects`) may resolve a near tie the other way in one of the four: a
    difference below 2e-3, which is reported.

    With another `precision` the file that was so checked is put into 8 or 16 bits, and compared with itself in float32 on images: it is
    kept if its outputs differ by at most 0.1 (relative, root mean square; 0.5 with random weights, of which more cannot be said) and at
    least 0.95 of the likeliest classes, labels of pixels, or objects agree, and, in 8 bits, if it is faster on one thread of this machine.
    See `drift.Drift` for how that is measured.

    The file's metadata (`metadata_props`, each value as JSON) has: model, task ('classification' or 'features'), input_size (C, H, W),
    mean, std, interpolation, crop_pct, num_classes, class_names, versions, weights, precision, license, source; and reduction, how tokens
    are reduced, if they are; drift, as it was measured, if the precision is not fp32.

    Args:
        model: any module that maps an image batch to a tensor or a list of tensors; from timm, vitzoo or elsewhere.
        path: the file to write; an older one stays until the new one has been checked.
        input_size: `H` for square, (H, W) or (C, H, W).
        opset: 18 to 23, or 17 for old runtimes (by PyTorch's TorchScript exporter).
        dynamic_batch: accept any batch size; else 1 alone.
        dynamic_size: accept other heights and widths. Quick for convolutional models; attention over windows or regions can take many
            minutes, where opset 17 is the way out. Models that build tables for their size must be exported once per size.
        class_names: one per class; by default ImageNet's, where the weights are loaded and the model's timm configuration is for as many
            classes as ImageNet has. Name them if you trained the model on as many others.
        license: of the weights; by default, unless they are random, what the model's timm configuration says.
        source: of the weights; by default likewise.
        weights: 'loaded' (or trained) or 'random'; by default random where every norm is as it was built, and null in the metadata where
            there is no norm to tell by.
        precision: 'fp32'; 'int8', products with a constant in 8 bits, by the range that their input has in the image at hand;
            'int8-static', convolutions too, by the range that their values have in images; 'fp16', weights and values in 16 bits, for
            runtimes that have it.
        calibration: images for that: a folder, or a list of image files and PIL images; of many, 64. By default photographs and digit
            scenes that come with scikit-learn and matplotlib (extra `viz`), or random images where these are not installed. For
            'int8-static' every other image is for the ranges, the rest for the comparison.
        force_precision: keep a file that is slower than float32 or drifts too far.
        rounds: of the latency measurement; 0 for none.
        progress: show a progress bar.

    A model, or a part of it, that cannot be exported says so in an attribute `exportable` (`exportable_dynamic_size` for that option):
    False, or a string with the reason. A model says by attributes what else it is: `output_names`; `onnx_metadata`, entries in the place of
    those above; `objects`, if its outputs have an entry for each object found in a single image (see `vitzoo.mm.deploy`).

    Raises:
        ValueError: before any work, if an argument is bad or the model cannot be exported, such as one with adapters in layers that are
            folded.
        ExportError: if the exporter fails or the file disagrees with PyTorch, or in a smaller precision is not worth it.
        ImportError: if the extra `onnx` is not installed.
    """
    if opset not in OPSETS:
        raise ValueError(f'opset={opset!r}: expected {OPSETS[0]} to {OPSETS[-1]}; 20 suits current runtimes, 17 old ones.')
    check_range(0, 1000, rounds=rounds)
    quantise.check_arguments(precision, calibration, force_precision, rounds)
    images = drift.find(calibration)
    if weights not in (None, 'loaded', 'random'):
        raise ValueError(f"weights={show(weights)}: expected 'loaded', 'random', or None to look at the norms.")
    size = image_shape(model, input_size)
    _refuse(model, 'exportable', 'cannot be exported to ONNX')
    objects = getattr(model, 'objects', False)
    if objects and dynamic_batch:
        raise ValueError(f'{type(model).__name__} finds objects in one image at a time: expected dynamic_batch=False.')
    if dynamic_size:
        _refuse(model, 'exportable_dynamic_size', 'cannot be exported with dynamic_size=True; export one file per size')
    num_bytes = 4 * sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    if num_bytes > FILE_LIMIT:
        raise ValueError(f'{type(model).__name__} takes {num_bytes / 2**30:.1f} GiB in float32: one ONNX file holds less than 2 GiB.')
    for module in ('onnx', 'onnxscript', 'onnxruntime'):
        require(module, 'onnx')
    path = Path(path)

    expected = expected_seconds(sum(1 for _ in model.modules()), rounds, precision)
    with _temporary(path) as temporary, progress_bar(expected, progress) as step:
        step('run in PyTorch')
        # in float32 on the CPU whatever the caller has; the file is made of `deployed` and compared with `plain`
        plain = inference_copy(model).cpu()
        batches = BATCHES if dynamic_batch else (1,) * len(verify.SEEDS)
        notes = []
        cases = [verify.make_cases(plain, size, batches)]
        deployed = deploy_form(plain, 'onnx-int8' if precision.startswith('int8') else 'onnx', None if dynamic_size else cases[0][0].images)
        if dynamic_size:
            cases += _cases_at_other_sizes(plain, size, batches, notes)
        names = _output_names(model, cases[0][0])
        weights = weights or _kind_of_weights(model)
        metadata = _metadata(model, size, names, cases[0], class_names, weights, license, source, notes)

        step('trace')
        with _quiet(), stages_of_exporter(step) if progress else nullcontext():
            proto = _export(deployed, cases[0][0].images, names, opset, dynamic_batch, dynamic_size, objects, progress)
        _write(proto, metadata, temporary)
        found = _read_opset(temporary)
        if found != opset:
            raise ExportError(f'the exporter wrote opset {found} where {opset} was asked for; choose another opset.')

        step('check in ONNX Runtime')
        selects = any(getattr(m, 'selects', False) for m in model.modules())
        session = verify.open_session(str(temporary))
        checks = [_check_size(session, c, names, selects, notes) for c in cases]

        if rounds:
            step('time', 0.)
        latency = _latency(plain, session, cases[0][0], rounds, lambda share: step('time', share)) if rounds else {}
        quantisation, nodes = None, len(proto.graph.node)
        if precision != 'fp32':
            step(f'put into {precision}')
            quantisation = quantise.quantise(temporary, precision, images, batches, rounds, force_precision, notes)
            metadata |= dict(precision=precision, drift=quantisation.drift.to_dict())
            nodes = quantise.count_nodes(temporary)
        report = ExportReport(
            path=str(path), model=metadata['model'], task=metadata['task'],
            exporter='torchscript' if opset == TORCHSCRIPT_OPSET else 'dynamo', opset=opset, nodes=nodes,
            file_size=temporary.stat().st_size, input_size=size, outputs=names, checks=[c for group in checks for c in group],
            latency_ms=latency, metadata=metadata, warnings=notes, precision=precision, quantisation=quantisation,
        )
        os.replace(temporary, path)
    return report


def _refuse(model: nn.Module, flag: str, what: str) -> None:
    """Raise where a model or a part of it says in this attribute that it is not, by False or by a string with the reason."""
    for module in model.modules():
        reason = getattr(module, flag, True)
        if reason is not True:
            raise ValueError(f'{type(module).__name__} {what}' + (f': {reason}' if reason else '.'))


def _cases_at_other_sizes(model: nn.Module, size: tuple[int, int, int], batches: Sequence[int], notes: list[str]) -> list[list[Case]]:
    """At three sizes, of which one is odd if the model takes odd ones."""
    channels, height, width = size
    larger = ((channels, height + 32, width + 64), (channels, height + 64, width), (channels, height + 96, width + 32))
    try:
        cases = [verify.make_cases(model, s, batches) for s in larger[:2]]
    except ValueError as e:
        raise ValueError(f'dynamic_size=True: {e} Export one file per size.') from e
    try:
        return [*cases, verify.make_cases(model, (channels, height + 13 | 1, width + 38 | 1), batches)]
    except ValueError as e:
        notes.append(f'not every size: {e}')
        return [*cases, verify.make_cases(model, larger[2], batches)]


@contextmanager
def _temporary(path: Path):
    """A file next to `path` that is gone at the end, unless it was renamed; made at once, so that a bad path costs no work."""
    if path.is_dir():
        raise ValueError(f'path {str(path)!r} is a folder: expected a file name, e.g. {str(path / "model.onnx")!r}.')
    temporary = temporary_name(path)
    try:
        temporary.touch(exist_ok=False)
    except OSError as e:
        raise ValueError(f'path {str(path)!r} cannot be written ({e.strerror}): expected a file in an existing folder of yours.') from e
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _quiet():
    """Silence the exporters' remarks for the time of a call."""
    log = getattr(torch._C, '_jit_onnx_log', None)
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    try:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        if log is not None:  # the older exporter prints its whole graph where it fails, also if asked not to
            torch._C._jit_onnx_log = lambda *args: None
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        if log is not None:
            torch._C._jit_onnx_log = log
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _output_names(model: nn.Module, case: Case) -> tuple[str, ...]:
    """What the model says; else a single (B, K) tensor is a classifier's, unless it has no classes."""
    if getattr(model, 'output_names', None):
        return tuple(model.output_names)
    if len(case.outputs) == 1 and case.outputs[0].ndim == 2 and getattr(model, 'num_classes', None) != 0:
        return ('logits',)
    return tuple(f'feat{i}' for i in range(len(case.outputs)))


def _metadata(model: nn.Module, size: tuple[int, int, int], names: tuple[str, ...], cases: list[Case],
              class_names: Sequence[str] | None, weights: str | None, license: str | None, source: str | None, notes: list[str]) -> dict:
    """What goes into the file; remarks for the report go to `notes`."""
    from vitzoo import __version__
    config = next((c for m in model.modules() if (c := getattr(m, 'pretrained_cfg', None))), {})
    data = resolve_data_config({'input_size': size}, pretrained_cfg=config)
    if len(data['mean']) != size[0]:
        for key in ('mean', 'std'):
            data[key] = (sum(data[key]) / len(data[key]),) * size[0]
        notes.append(f'mean and std were known for other channels: their averages stand for each of the {size[0]}')
    own = getattr(model, 'onnx_metadata', {})
    num_classes = cases[0].outputs[0].shape[1] if names == ('logits',) else own.get('num_classes', 0)
    if class_names is None:
        class_names = own.get('class_names')
    if class_names is None and weights == 'loaded' and names == ('logits',) and config.get('num_classes') == num_classes:
        class_names = _imagenet_names(num_classes)
    published = config if weights == 'loaded' else {}
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f'class_names has {len(class_names)} entries: expected {num_classes}, one for each class of the model.')
    if not any(o.any() for case in cases for o in case.outputs):
        notes.append('all outputs are zero or empty (a head that was never trained?): the comparison says little')
    import onnx
    return {**dict(
        model=model_name(model), task='classification' if num_classes else 'features', input_size=list(size), mean=list(data['mean']),
        std=list(data['std']), interpolation=data['interpolation'], crop_pct=data['crop_pct'], num_classes=num_classes,
        class_names=None if class_names is None else [str(name) for name in class_names],
        versions=dict(vitzoo=__version__, torch=str(torch.__version__), timm=timm.__version__, onnx=onnx.__version__),
        weights=weights, precision='fp32', license=license or published.get('license'),
        source=source or published.get('origin_url') or published.get('hf_hub_id') or published.get('url') or None,
    ), **_reduction(model), **{key: value for key, value in own.items() if key != 'class_names'}}


def _reduction(model: nn.Module) -> dict[str, str]:
    """How its tokens are reduced, where they are."""
    method = next((m.reduction for m in model.modules() if isinstance(m, Reduced)), None)
    return {} if method is None else {'reduction': setting_of(method)}


def _kind_of_weights(model: nn.Module) -> str | None:
    """'random' if every norm is as it was built, which a step of training or a file changes, else 'loaded'; None if there is no norm."""
    norms = [m for m in model.modules() if 'norm' in type(m).__name__.lower() and isinstance(getattr(m, 'weight', None), torch.Tensor)]
    if not norms:
        return None
    # some start at 0, so that a branch adds nothing
    built = (((m.weight == 1) | (m.weight == 0)).all() and (getattr(m, 'bias', None) is None or not m.bias.any()) for m in norms)
    return 'random' if all(built) else 'loaded'


def _imagenet_names(num_classes: int) -> list[str] | None:
    """Names of ImageNet's classes, if it has a subset with as many."""
    from timm.data import ImageNetInfo, infer_imagenet_subset
    subset = infer_imagenet_subset({'num_classes': num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]


def _export(model: nn.Module, images: torch.Tensor, names: tuple[str, ...], opset: int, dynamic_batch: bool, dynamic_size: bool,
            objects: bool, verbose: bool = False):
    """The model as an ONNX ModelProto, by the exporter that writes this opset."""
    # batch 1 would be taken for a constant
    example = torch.cat([images, images]) if dynamic_batch else images
    axes = ({0: 'batch'} if dynamic_batch else {}) | ({2: 'height', 3: 'width'} if dynamic_size else {})
    options = dict(input_names=['image'], output_names=list(names), opset_version=opset)
    try:
        if opset == TORCHSCRIPT_OPSET:
            import onnx
            buffer = io.BytesIO()
            first = 'objects' if objects else 'batch'
            dynamic = {name: {0: first} for name in names} if objects or dynamic_batch else {}
            torch.onnx.export(model, (example,), buffer, dynamo=False, verbose=False,
                              dynamic_axes={'image': axes, **dynamic}, **options)
            proto = onnx.load_from_string(buffer.getvalue())
        else:
            program = torch.onnx.export(model, (example,), dynamo=True, external_data=False, dynamic_shapes=(axes,), verbose=verbose,
                                        **options)
            proto = program.model_proto
        simplify(proto)
        return proto
    except Exception as e:  # the exporters raise whatever their stages raise, with advice on many lines around the cause
        reason = next((line for line in str(e.__cause__ or e).splitlines() if line.strip()), type(e).__name__)
        raise ExportError(f'{type(model).__name__} could not be exported at opset {opset}: {reason}') from e


def _write(proto, metadata: dict, path: Path) -> None:
    import onnx
    _drop_notes(proto.graph.node)
    for function in proto.functions:
        _drop_notes(function.node)
    proto.doc_string = MARK
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    path.write_bytes(proto.SerializeToString())


def _drop_notes(nodes) -> None:
    """The exporter attaches Python stack traces, with the paths of this machine, to every node."""
    for node in nodes:
        node.ClearField('metadata_props')
        node.ClearField('doc_string')
        for attribute in node.attribute:
            _drop_notes(attribute.g.node)


def _read_opset(path: Path) -> int:
    import onnx
    return next(o.version for o in onnx.load(path).opset_import if o.domain in ('', 'ai.onnx'))


def _check_size(session, cases: list[Case], names: tuple[str, ...], selects: bool, notes: list[str]) -> list[verify.Check]:
    checks = [verify.check(session, case, names, selects) for case in cases]
    resolved = {seed: error for c in checks for seed, error in c.resolved.items()}
    where = f'{checks[0].height}x{checks[0].width}'
    if len(resolved) > 1:
        raise ExportError(f'{len(resolved)} of {len(verify.SEEDS)} images at {where} differ from PyTorch by more than '
                          f'{verify.TOLERANCE:.0e} of the largest value; one near tie may be resolved the other way, no more.')
    notes += [f'image {seed} at {where} differs by {error:.1e}: a choice resolved the other way' for seed, error in resolved.items()]
    return checks


def _latency(plain: Callable, session, case: Case, rounds: int, reach: Callable[[float], None]) -> dict[str, float]:
    calls = {'pytorch': lambda: plain(case.images), 'onnxruntime': lambda: session.run(None, {'image': case.images.numpy()})}
    done = itertools.count(1)
    with torch.inference_mode():
        timings = take_turns(calls, rounds=rounds, progress=lambda: reach(next(done) / (len(calls) * (1 + rounds))))
    return {name: timings.median_ms(name) for name in ('pytorch', 'onnxruntime')}
