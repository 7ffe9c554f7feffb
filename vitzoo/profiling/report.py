"""`vitzoo.profile`: what a model costs, as one record."""
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from ..arguments import check_range, check_types
from ..facts import float_dtype, image_shape, model_name
from .counters import count_macs, count_traffic, on_meta
from .latency import take_turns


@dataclass(frozen=True)
class Profile:
    """Cost of one forward pass in eval mode, per image unless said. The latency apart, it is the same on every machine.

    macs: matrix products, convolutions and attention, at batch 1.
    activations, bytes_moved, operators: see `counters.Traffic`; at `batch` and `element_bytes`. `operators` are those of a whole batch.
    latency_ms: batch -> median milliseconds per image, CPU time of one thread; wall time for a model on another device.
    """
    model: str
    input_size: tuple[int, int, int]
    params: int
    macs: int
    activations: int
    bytes_moved: float
    operators: int
    batch: int
    element_bytes: int
    latency_ms: dict[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return asdict(self)

    def __rich__(self):
        from rich.table import Table
        table = Table(title=f'{self.model} at {"x".join(map(str, self.input_size))}, per image', show_header=False)
        table.add_row('parameters', f'{self.params:,}')
        table.add_row('MACs', f'{self.macs / 1e9:.4f} G')
        table.add_row('activations', f'{self.activations / 1e6:.2f} M')
        table.add_row(f'memory traffic, batch {self.batch}, {self.element_bytes} bytes an element', f'{self.bytes_moved / 1e6:.1f} MB')
        table.add_row('operators, whole batch', str(self.operators))
        for batch, ms in self.latency_ms.items():
            table.add_row(f'latency, batch {batch}', f'{ms:.2f} ms')
        return table


@check_types
def profile(model: nn.Module, input_size: int | tuple[int, ...], *, batch: int = 128, element_bytes: int = 2,
            latency_batches: Sequence[int] = (), rounds: int = 5) -> Profile:
    """Count what a model costs; nothing of it is changed, and nothing is computed unless a latency is asked for.

    Args:
        model: any module that takes one image batch (B, C, H, W).
        input_size: `H` for square, (H, W) or (C, H, W).
        batch: of the memory traffic (weights are read once a batch).
        element_bytes: width of floating-point numbers in the memory traffic.
        latency_batches: batch sizes to time the model at, where it is and in its own precision; on a CPU with one thread.
        rounds: of the timing, which takes medians.

    Raises:
        ValueError: if `model` is no module, a number is not positive, or the model cannot take such an image.
    """
    check_range(1, 2 ** 16, batch=batch, element_bytes=element_bytes, latency_batches=latency_batches, rounds=rounds)
    size = image_shape(model, input_size)
    dtype = float_dtype(model)
    on_no_device = on_meta(model)
    try:
        macs = count_macs(on_no_device, torch.empty(1, *size, device='meta', dtype=dtype))
        traffic = count_traffic(on_no_device, torch.empty(batch, *size, device='meta', dtype=dtype), element_bytes)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f'{type(model).__name__} cannot be counted at {size} without data: {e}') from e
    return Profile(
        model=model_name(model), input_size=size, params=sum(p.numel() for p in model.parameters()), macs=macs,
        activations=traffic.activations // batch, bytes_moved=traffic.bytes / batch, operators=traffic.operators,
        batch=batch, element_bytes=element_bytes, latency_ms=_latency(model, size, dtype, latency_batches, rounds),
    )


def _latency(model: nn.Module, size: tuple[int, int, int], dtype: torch.dtype, batches: Sequence[int], rounds: int) -> dict[int, float]:
    if not batches:
        return {}
    model = copy.deepcopy(model).eval()
    device = next((p.device for p in model.parameters()), torch.device('cpu'))

    def forward(x):
        model(x)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    images = {batch: torch.randn(batch, *size, device=device, dtype=dtype) for batch in batches}
    with torch.inference_mode():
        timings = take_turns({str(batch): lambda x=x: forward(x) for batch, x in images.items()}, rounds=rounds)
    clock = 'cpu' if device.type == 'cpu' else 'wall'
    return {batch: timings.median_ms(str(batch), clock) / batch for batch in batches}
