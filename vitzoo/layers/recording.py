"""The recorder of token maps: layers say in their forward which positions belong together, if somebody wants to know.

A layer writes, where it knows the answer,

    if recording():
        record(self, 'windows', labels, total)

which costs the question alone when nobody listens, and is not there at all in what torch.compile, torch.export and the ONNX exporters make
of the forward. `vitzoo.token_map` is the one who listens.
"""
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_listening = threading.local()  # each thread has its own recorder


class Record(NamedTuple):
    """What a layer said of its positions; the fields are those of `vitzoo.token_maps.TokenMap`."""
    module: nn.Module
    what: str
    kind: str
    labels: Tensor  # integers (B or 1, h, w), or (B, h * w) on the grid of the model's patches
    total: int


def recording() -> bool:
    """Whether somebody listens to the forward that runs in this thread."""
    # a graph, which others run, has no listener; the first operand is a constant for whoever traces
    return not torch.compiler.is_compiling() and getattr(_listening, 'records', None) is not None


def record(module: nn.Module, what: str, labels: Tensor, total: int, kind: str = 'groups') -> None:
    """Say which positions belong together in a layer. To be called if `recording()`."""
    _listening.records.append(Record(module, what, kind, labels.detach(), total))


@contextmanager
def listen() -> Iterator[list[Record]]:
    """Collect what is recorded in this thread inside the block."""
    before, _listening.records = getattr(_listening, 'records', None), []
    try:
        yield _listening.records
    finally:
        _listening.records = before


def cells(H: int, W: int, h: int, w: int, shift: int = 0, device: torch.device | None = None) -> Tensor:
    """Which of the cells of h x w each position of an H x W map lies in, int64 (1, H, W), row by row.

    Cells begin at `shift`; what is left of it in front, and at the end, lies in smaller ones.
    """
    rows, cols = ((torch.arange(length, device=device) - shift).div(cell, rounding_mode='floor') for length, cell in ((H, h), (W, w)))
    rows, cols = rows - rows[:1], cols - cols[:1]
    return (rows[:, None] * (cols[-1:] + 1) + cols)[None]
