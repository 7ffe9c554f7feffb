"""GELU writes over its input exactly where nobody can miss it."""
import torch
import torch.nn.functional as F

from vitzoo.layers import Gelu


def test_input_stays_where_gradients_need_it():
    x = torch.randn(3, 5, requires_grad=True)
    before = x.detach().clone()
    y = Gelu()(x)
    y.sum().backward()
    assert torch.equal(x, before) and torch.equal(y, F.gelu(x)) and x.grad.isfinite().all()


def test_inference_needs_no_other_memory():
    x = torch.randn(3, 5)
    expected = F.gelu(x)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            overwritten = x.clone()
            y = Gelu()(overwritten)
            assert torch.equal(y, expected) and y.data_ptr() == overwritten.data_ptr()


def test_compiled_code_and_traces_leave_their_input_alone():
    x = torch.randn(3, 5)
    before = x.clone()
    with torch.no_grad():
        compiled = torch.compile(Gelu(), backend='aot_eager', fullgraph=True)
        assert torch.equal(compiled(x), F.gelu(before)) and torch.equal(x, before)
        assert torch.equal(torch.jit.trace(Gelu(), torch.randn(2))(x), F.gelu(before)) and torch.equal(x, before)
