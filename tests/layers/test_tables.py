"""Tables are made once per size, and kept for each device and precision."""
import threading

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap

from vitzoo.layers import per_size

calls = []


@per_size
def ramp(n, start=0):
    calls.append((n, start))
    return np.arange(start, start + n)


@per_size
def both(n):
    return np.arange(n), np.ones((n, 2), np.float32)


def gather(x):
    return x.index_select(0, ramp(3, 1, like=x))


def test_made_once_per_size():
    calls.clear()
    x = torch.zeros(())
    first, again, other = ramp(5, like=x), ramp(5, like=x), ramp(6, like=x)
    assert calls == [(5, 0), (6, 0)] and first is again
    assert first.tolist() == [0, 1, 2, 3, 4] and len(other) == 6


def test_real_numbers_take_the_precision_and_indices_do_not():
    for dtype in torch.float32, torch.float16:
        index, weights = both(3, like=torch.zeros((), dtype=dtype))
        assert index.dtype == torch.int64 and weights.dtype == dtype and weights.shape == (3, 2)


def test_kept_on_each_device():
    on_meta = ramp(5, like=torch.zeros((), device='meta'))
    assert on_meta.is_meta and ramp(5, like=torch.zeros((), device='meta')) is on_meta
    assert ramp(5, like=torch.zeros(())).tolist() == [0, 1, 2, 3, 4]


def run_compiled(x):
    torch._dynamo.reset()
    torch.compile(gather, backend='aot_eager', fullgraph=True)(x)


class Gather(torch.nn.Module):
    def forward(self, x):
        return gather(x)


def run_fake(x):
    with FakeTensorMode() as mode:
        gather(mode.from_tensor(x))


@pytest.mark.parametrize('trace', [
    run_compiled,
    run_fake,
    lambda x: torch.export.export(Gather(), (x,)),
    lambda x: torch.export.export(Gather(), (x,), strict=True),
    lambda x: torch.jit.trace(gather, x),
    lambda x: gather(x.to('meta')),
    grad(lambda x: gather(x).sum()),
    lambda x: vmap(gather)(x[None]),
], ids=['compile', 'fake', 'export', 'strict export', 'jit', 'meta', 'grad', 'vmap'])
@pytest.mark.parametrize('first', [True, False], ids=['first', 'after eager'])
def test_nothing_made_while_tracing_stays(trace, first):
    ramp.forget()
    x = torch.arange(8.)
    if not first:
        gather(x)
    trace(x)
    assert torch.equal(gather(x), x[1:4])


def test_a_table_of_inference_serves_training():
    ramp.forget()
    x = torch.arange(8., requires_grad=True)
    with torch.inference_mode():
        gather(x)
    gather(x).sum().backward()
    assert x.grad.sum() == 3


def test_compiled_at_changing_sizes():
    def last(x):
        index, weights = both(x.shape[0], like=x)
        return x.index_select(0, index).expand(weights.shape[1], -1)[0][ramp(1, x.shape[0] - 1, like=x)]

    torch._dynamo.reset()
    compiled = torch.compile(last, backend='aot_eager', fullgraph=True, dynamic=True)
    for n in 5, 6, 8:
        assert compiled(torch.arange(float(n))).item() == n - 1


def test_threads_share_tables():
    found = []

    def work():
        for n in range(200):
            found.append((n % 100, ramp(n % 100, like=torch.zeros(()))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 800 and all(table.tolist() == list(range(n)) for n, table in found)
