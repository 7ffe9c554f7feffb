"""Tables are made once per size, kept as arrays, and handed out as tensors."""
import numpy as np
import torch

from vitzoo.layers import per_size

calls = []


@per_size
def ramp(n, start=0):
    calls.append((n, start))
    return np.arange(start, start + n)


@per_size
def both(n):
    return np.arange(n), np.ones((n, 2), np.float32)


def test_made_once_per_size():
    calls.clear()
    first, again, other = ramp(5), ramp(5), ramp(6)
    assert calls == [(5, 0), (6, 0)] and first.data_ptr() == again.data_ptr()
    assert first.tolist() == [0, 1, 2, 3, 4] and len(other) == 6


def test_several_arrays():
    index, weights = both(3)
    assert index.dtype == torch.int64 and weights.dtype == torch.float32 and weights.shape == (3, 2)


def test_nothing_made_while_tracing_stays():
    def gather(x):
        return x.index_select(0, ramp(3, 1).to(x.device))

    x = torch.arange(8.)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(gather, backend='aot_eager', fullgraph=True)(x), x[1:4])
    gather(x.to('meta'))
    assert torch.equal(gather(x), x[1:4])
