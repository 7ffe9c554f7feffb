"""Models whose layers are more than their weight: what folds and exports them computes the same, or says which layer stands in the way."""
import copy

import pytest
import torch
import zoo
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from torch.utils._python_dispatch import return_and_correct_aliasing

import vitzoo
from vitzoo.export.deploy import deploy_form
from vitzoo.export.verify import CHOICE_TOLERANCE, TOLERANCE

SIZE = 112


class Adapter(nn.Module):
    """A linear layer with a low-rank addition, which shows the layer's weight as its own, as peft's does."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(base_layer.in_features, 2, bias=False), nn.Linear(2, base_layer.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    in_features = property(lambda self: self.base_layer.in_features)
    out_features = property(lambda self: self.base_layer.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Halved(torch.Tensor):
    """A tensor that holds the double of what it says, as quantised weights hold something else."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, strides=held.stride(), device=held.device)

    def __init__(self, held):
        self.held = held

    def __tensor_flatten__(self):
        return ['held'], None

    @staticmethod
    def __tensor_unflatten__(tensors, meta, size, stride):
        return Halved(tensors['held'])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return return_and_correct_aliasing(func, args, kwargs or {}, Halved(func(args[0].held)))
        args, kwargs = torch.utils._pytree.tree_map_only(Halved, lambda t: t.held / 2, (args, kwargs or {}))
        return func(*args, **kwargs)


def adapt(model, name, layer):
    if isinstance(layer, nn.Linear):
        model.set_submodule(name, Adapter(layer))


def halve(model, name, layer):
    if isinstance(layer, nn.Linear):
        layer.weight = nn.Parameter(Halved(layer.weight.detach() * 1.5), requires_grad=False)


def normalise(model, name, layer):
    if layer.weight.ndim > 1:
        spectral_norm(layer, n_power_iterations=5)
        for hook in layer._forward_pre_hooks.values():  # in training mode, in which it converges
            hook(layer.train(), ())


class Enlarged(nn.Module):
    """By little, since some networks answer with powers of what comes in."""

    def forward(self, weight):
        return 1.2 * weight


KINDS = {
    'adapter': adapt,
    'parametrisation': lambda model, name, layer: parametrize.register_parametrization(layer, 'weight', Enlarged()),
    'orthogonal': lambda model, name, layer: layer.weight.ndim == 2 and parametrizations.spectral_norm(layer),
    'mask': lambda model, name, layer: prune.random_unstructured(layer, 'weight', 0.3),
    'spectral norm': normalise,
    'quantised': halve,
    'hook': lambda model, name, layer: layer.register_forward_hook(lambda module, args, out: 1.2 * out + 0.1),
    'hook in front': lambda model, name, layer: layer.register_forward_pre_hook(lambda module, args: (0.8 * args[0],)),
}


def layers(model) -> dict[str, nn.Module]:
    """What has a weight of its own."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer._parameters.get('weight'), nn.Parameter)}


def check_same_or_refused(model, x, names):
    tolerance = CHOICE_TOLERANCE if getattr(model, 'selects', False) else TOLERANCE
    with torch.no_grad():
        expected = model(x)
        for transform in lambda: reparameterize_model(copy.deepcopy(model), inplace=True), lambda: deploy_form(model):
            try:
                found = transform()
            except ValueError as e:
                assert '\n' not in str(e) and 'remove' in str(e)
                error = str(e)
            else:
                error = None
                torch.testing.assert_close(found(x), expected, rtol=0, atol=tolerance * expected.abs().max().item())
        assert error is None or any(f' {name} ' in f' {error} ' for name in names), error  # of `deploy_form`
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)  # nothing was changed


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', zoo.MICRO)
def test_every_layer(name, kind):
    model, x = zoo.build(name), torch.randn(1, 3, SIZE, SIZE)
    names = layers(model)
    with torch.no_grad():
        for layer_name, layer in names.items():
            KINDS[kind](model, layer_name, layer)
    check_same_or_refused(model.eval(), x, names)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['adapter', 'parametrisation', 'hook', 'hook in front'])
@pytest.mark.parametrize('name', zoo.MICRO)
def test_each_layer_alone(name, kind):
    plain, x = zoo.build(name), torch.randn(1, 3, SIZE, SIZE)
    for layer_name in layers(plain):
        model = copy.deepcopy(plain)
        with torch.no_grad():
            KINDS[kind](model, layer_name, model.get_submodule(layer_name))
        check_same_or_refused(model.eval(), x, [layer_name])


@pytest.mark.parametrize('opset', [17, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', KINDS)
def test_model_from_elsewhere(kind, opset, tmp_path):
    """With gradients, as in training: a mask is then a tensor that PyTorch does not copy."""
    pytest.importorskip('onnxruntime')
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    names = layers(model)
    for name, layer in names.items():
        KINDS[kind](model, name, layer)
    try:
        report = vitzoo.export_onnx(model, tmp_path / 'model.onnx', 32, opset=opset, rounds=0)
    except ValueError as e:
        assert str(e).startswith(('0 (', '4 (')) and '\n' not in str(e) and not list(tmp_path.iterdir())
    else:
        assert report.max_error <= TOLERANCE  # compared with the model as it is
