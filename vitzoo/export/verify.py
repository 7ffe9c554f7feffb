"""Comparison of an ONNX file in ONNX Runtime with the model in PyTorch."""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest value of an output
CHOICE_TOLERANCE = 2e-3  # of an image for which a rounding difference decided a near tie
SEEDS = (0, 1, 2, 3)


class ExportError(RuntimeError):
    """The exporter failed, or its file does not do what the model does. No file is left behind."""


@dataclass(frozen=True)
class Case:
    """Images for one run of the model, and what PyTorch makes of them."""
    images: Tensor
    seeds: tuple[int, ...]
    outputs: list[Tensor]


@dataclass
class Check:
    """Differences of one run, as shares of the largest value of each output.

    errors: output name -> difference over all images that agree.
    resolved: seed -> difference of the images for which a model that chooses took the other side of a near tie.
    """
    batch: int
    height: int
    width: int
    errors: dict[str, float]
    resolved: dict[int, float] = field(default_factory=dict)


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
        images = torch.cat([photo(seed, size) for seed in now])
        try:
            with torch.no_grad():
                outputs = model(images)
        except Exception as e:  # whatever the model thinks of this size
            raise ValueError(f'{type(model).__name__} does not take images of (C, H, W) = {size}: {e}') from e
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs) if isinstance(outputs, (list, tuple)) else []
        if not outputs or not all(isinstance(o, Tensor) and o.ndim > 1 and len(o) == batch for o in outputs):
            raise ValueError(f'{type(model).__name__} must return a tensor, or a list or tuple of tensors, each with the batch first.')
        if not all(o.isfinite().all() for o in outputs):
            raise ValueError(f'{type(model).__name__} returns values that are not finite for images of {size}: its weights are damaged.')
        cases.append(Case(images, now, outputs))
    return cases


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
    how many of them are too many is for the caller to say.

    Raises:
        ExportError: on another shape, a value that is not finite, or a difference beyond the tolerance.
    """
    batch, _, height, width = case.images.shape
    try:
        found = session.run(list(names), {'image': case.images.numpy()})
    except Exception as e:
        raise ExportError(f'ONNX Runtime cannot run the file at batch {batch}, {height}x{width}: {e}') from e
    per_image = []  # output -> (batch,)
    for name, want, got in zip(names, case.outputs, found, strict=True):
        want = want.numpy()
        if got.shape != want.shape:
            raise ExportError(f'{name} at batch {batch}, {height}x{width}: the file gives shape {got.shape}, PyTorch {want.shape}.')
        if not np.isfinite(got).all():
            raise ExportError(f'{name} at batch {batch}, {height}x{width}: the file gives values that are not finite.')
        difference = np.abs(got - want).reshape(batch, -1).max(1)
        per_image.append(difference / max(np.abs(want).max(), np.finfo(np.float32).tiny))
    per_image = np.array(per_image)
    worst = per_image.max(0)
    limit = CHOICE_TOLERANCE if selects else TOLERANCE
    if worst.max() > limit:
        name = names[per_image.max(1).argmax()]
        raise ExportError(f'{name} at batch {batch}, {height}x{width}: the file differs from PyTorch by {worst.max():.1e} of the largest '
                          f'value, {limit:.0e} is allowed.')
    agree = worst <= TOLERANCE
    errors = {name: float(error[agree].max(initial=0)) for name, error in zip(names, per_image, strict=True)}
    resolved = {seed: float(error) for seed, error, same in zip(case.seeds, worst, agree, strict=True) if not same}
    return Check(batch, height, width, errors, resolved)
