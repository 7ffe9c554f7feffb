"""Comparison of an ONNX file in ONNX Runtime with the model in PyTorch."""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest value of an output
CHOICE_TOLERANCE = 2e-3  # of an image for which a rounding difference decided a near tie
OBJECT_TOLERANCE = 1e-4  # of the largest coordinate or score of the objects of an image
LABEL_TOLERANCE = 1e-4  # share of the pixels of a label map or mask that are near ties
SEEDS = (0, 1, 2, 3)


class ExportError(RuntimeError):
    """The exporter failed, or its file does not do what the model does. No file is left behind."""


@dataclass(frozen=True)
class Case:
    """Images for one run of the model, and what PyTorch makes of them; `objects` if that has an entry for each object found."""
    images: Tensor
    seeds: tuple[int, ...]
    outputs: list[Tensor]
    objects: bool = False


@dataclass
class Check:
    """Differences of one run, as shares of the largest value of each output.

    seeds: of the random images of the batch, see `photo`.
    errors: output name -> difference over all images that agree.
    resolved: seed -> difference of the images for which a model that chooses took the other side of a near tie.
    """
    batch: int
    height: int
    width: int
    errors: dict[str, float]
    resolved: dict[int, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    def __str__(self) -> str:
        return _place(self.batch, self.height, self.width, self.seeds)


def photo(seed: int, size: tuple[int, int, int]) -> Tensor:
    """A random (1, C, H, W) image on the scale of a normalised photo: smooth colours, some noise, about zero mean and unit deviation."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, size[0], 7, 7, generator=generator)
    smooth = F.interpolate(coarse, size[1:], mode='bicubic', align_corners=True)
    return (smooth + 0.3 * torch.randn(1, *size, generator=generator)).clamp(-2.5, 2.7)


def make_cases(model: nn.Module, size: tuple[int, int, int], batches: Sequence[int]) -> list[Case]:
    """Run the model on the images of `SEEDS`, in batches of the given sizes.

    Raises:
        ValueError: if the model cannot take them, or makes of them what is not a tensor or a list of tensors, or not finite.
    """
    cases, seeds = [], list(SEEDS)
    for batch in batches:
        now, seeds = tuple(seeds[:batch]), seeds[batch:]
        cases.append(make_case(model, torch.cat([photo(seed, size) for seed in now]), now))
    return cases


def make_case(model: nn.Module, images: Tensor, seeds: tuple[int, ...]) -> Case:
    """Run the model on some images. Raises ValueError as `make_cases` does."""
    objects, (batch, *size) = getattr(model, 'objects', False), images.shape
    try:
        with torch.no_grad():
            outputs = model(images)
    except Exception as e:  # whatever the model thinks of this size
        raise ValueError(f'{type(model).__name__} does not take images of (C, H, W) = {tuple(size)}: {e}') from e
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs) if isinstance(outputs, (list, tuple)) else []
    if not outputs or not all(isinstance(o, Tensor) and (objects or o.ndim > 1 and len(o) == batch) for o in outputs):
        raise ValueError(f'{type(model).__name__} must return a tensor, or a list or tuple of tensors, each with the batch first.')
    if not all(o.isfinite().all() for o in outputs):
        raise ValueError(f'{type(model).__name__} returns values that are not finite for images of {tuple(size)}: its weights are damaged.')
    return Case(images, seeds, outputs, objects)


def open_session(path: str):
    """ONNX Runtime on one CPU thread."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as e:  # its errors have no common base
        raise ExportError(f'ONNX Runtime cannot read the file: {e}') from e


def check(session, case: Case, names: Sequence[str], selects: bool) -> Check:
    """Compare one case.

    A model that chooses (`selects`) may differ by more than `TOLERANCE` but less than `CHOICE_TOLERANCE` in single images;
    how many of them are too many is for the caller to say. Of labels (integers) and masks, the share of other pixels counts, up to
    `LABEL_TOLERANCE`. Of objects there have to be as many, each with its label, the best first, where two with almost the same score may
    change places; boxes and scores may differ by `OBJECT_TOLERANCE`.

    Raises:
        ExportError: on another shape, a value that is not finite, or a difference beyond the tolerance.
    """
    if case.objects:
        return _check_objects(session, case, names, selects)
    found = _run(session, case, names)
    per_image, allowed = [], []  # output -> (batch,); output -> what agrees
    for name, want, got in zip(names, _arrays(case), found, strict=True):
        if got.shape != want.shape:
            raise ExportError(f'{name} at {_where(case)}: the file gives shape {got.shape}, PyTorch {want.shape}.')
        per_image.append([difference(*pair, np.abs(want).max()) for pair in zip(got, want, strict=True)])
        allowed.append(tolerance(want))
    return _judge(case, names, np.array(per_image), np.array(allowed), selects)


def _check_objects(session, case: Case, names: Sequence[str], selects: bool) -> Check:
    """`names` are `boxes`, `scores`, `labels` and perhaps others."""
    found, want = (dict(zip(names, values, strict=True)) for values in (_run(session, case, names), _arrays(case)))
    for name in names:
        if found[name].shape != want[name].shape:
            raise ExportError(f'{name} at {_where(case)}: the file gives shape {found[name].shape}, PyTorch {want[name].shape}.')
    if (np.diff(found['scores']) > 0).any():
        raise ExportError(f'scores at {_where(case)}: the file does not give the best first.')
    apart = (found['labels'] != want['labels'][:, None]).astype(np.float64)  # wanted, found
    for got, expected in (found['boxes'], want['boxes']), (found['scores'][:, None], want['scores'][:, None]):
        apart += np.abs(got - expected[:, None]).max(2) / max(np.abs(expected).max(initial=0), np.finfo(np.float32).tiny)
    partner = apart.argmin(1) if len(apart) else np.zeros(0, int)
    if len(set(partner)) < len(partner) or (found['labels'][partner] != want['labels']).any():
        raise ExportError(f'labels at {_where(case)}: the file gives other objects than PyTorch.')
    per_image = np.array([[difference(found[name][partner], want[name])] for name in names])
    allowed = np.array([max(tolerance(want[name]), OBJECT_TOLERANCE) for name in names])
    return _judge(case, names, per_image, allowed, selects)


def _run(session, case: Case, names: Sequence[str]) -> list[np.ndarray]:
    try:
        found = session.run(list(names), {'image': case.images.numpy()})
    except Exception as e:
        raise ExportError(f'ONNX Runtime cannot run the file at {_where(case)}: {e}') from e
    for name, got in zip(names, found, strict=True):
        if not np.isfinite(got).all():
            raise ExportError(f'{name} at {_where(case)}: the file gives values that are not finite.')
    return found


def _judge(case: Case, names: Sequence[str], per_image: np.ndarray, allowed: np.ndarray, selects: bool) -> Check:
    """per_image: (outputs, batch), differences; allowed: (outputs,), how large they may be."""
    limits = np.maximum(allowed, CHOICE_TOLERANCE) if selects else allowed
    beyond = (per_image / limits[:, None]).max(1)
    if beyond.max() > 1:
        i = beyond.argmax()
        raise ExportError(f'{names[i]} at {_where(case)}: the file differs from PyTorch by {per_image[i].max():.1e} of the largest '
                          f'value, {limits[i]:.0e} is allowed.')
    agree = (per_image <= allowed[:, None]).all(0)
    errors = {name: float(error[agree].max(initial=0)) for name, error in zip(names, per_image, strict=True)}
    resolved = {seed: float(error) for seed, error, same in zip(case.seeds, per_image.max(0), agree, strict=True) if not same}
    batch, _, height, width = case.images.shape
    return Check(batch, height, width, errors, resolved, case.seeds)


def difference(got: np.ndarray, want: np.ndarray, scale: float | None = None) -> float:
    """Largest difference as a share of `scale`, by default the largest value; of integers and masks, the share of others."""
    if want.size == 0:
        return 0.
    if want.dtype.kind != 'f':
        return float((got != want).mean())
    scale = np.abs(want).max() if scale is None else scale
    return float(np.abs(got - want).max() / max(scale, np.finfo(np.float32).tiny))


def tolerance(values: np.ndarray) -> float:
    """What `difference` may be of an output like this."""
    return TOLERANCE if values.dtype.kind == 'f' else LABEL_TOLERANCE


def _arrays(case: Case) -> list[np.ndarray]:
    return [output.numpy() for output in case.outputs]


def _where(case: Case) -> str:
    batch, _, height, width = case.images.shape
    return _place(batch, height, width, case.seeds)


def _place(batch: int, height: int, width: int, seeds: Sequence[int]) -> str:
    """Which run that is, in words: with the images, of which several runs may have the same number and size."""
    images = f', random image{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}' if seeds else ''
    return f'batch {batch}, {height}x{width}{images}'
