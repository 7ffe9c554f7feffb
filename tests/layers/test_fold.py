import pytest
import torch
from timm.layers import LayerScale
from torch import nn

from vitzoo.layers import fold_batch_norm, fold_layer_scale, fold_norm_and_bias


@pytest.mark.parametrize('bias', [True, False])
def test_batch_norm_goes_into_a_convolution(bias):
    conv, norm = nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 8, 9)
    expected = norm.eval()(conv.eval()(x))
    folded, rest = fold_batch_norm(conv, norm)
    assert isinstance(rest, nn.Identity)
    torch.testing.assert_close(folded(x), expected)
    assert fold_batch_norm(folded, rest) == (folded, rest)  # once is enough


def test_layer_scale_goes_into_a_linear_layer():
    linear, scale = nn.Linear(6, 4), LayerScale(4)
    nn.init.normal_(scale.gamma)
    x = torch.randn(2, 3, 6)
    expected = scale(linear(x))
    rest = fold_layer_scale(linear, scale)
    assert isinstance(rest, nn.Identity)
    torch.testing.assert_close(linear(x), expected)
    assert fold_layer_scale(linear, rest) is rest


@torch.no_grad()
def test_layer_norm_and_biases_are_folded():
    norm, linears, x = nn.LayerNorm(6, eps=1e-3), [nn.Linear(6, 4), nn.Linear(6, 2, bias=False)], torch.randn(5, 6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    expected = [linear(norm(x)) for linear in linears]
    for _ in range(2):  # the second time changes nothing
        norm = fold_norm_and_bias(norm, *linears)
        assert norm.weight.eq(1).all() and norm.bias.eq(1).all()
        for linear, y in zip(linears, expected, strict=True):
            assert linear.bias is None
            torch.testing.assert_close(linear(norm(x)), y)
