"""The form in which a model is exported: what a runtime wants written otherwise, written so before anything is traced.

A module says how by a method `deploy(runtime) -> nn.Module`. It is called on a float32 copy in eval mode, after the parts of the module
and after all `fuse()`, and returns the module that stands in its place and computes the same: itself, changed, or another.
"""
import copy

from timm.layers import SelectAdaptivePool2d
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils import parametrize

from ..layers.plain import FoldError, holds_other_weights

RUNTIMES = ('onnx',)


def deploy_form(model: nn.Module, runtime: str = 'onnx') -> nn.Module:
    """A float32 copy of a model in inference form, folded and written as a runtime wants it; for timm's and other models too.

    Raises:
        ValueError: on a runtime that nothing is known about; on a layer that cannot be folded, since it has adapters, hooks or weights of
            another kind, with its name.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f'runtime={runtime!r}: expected {" or ".join(map(repr, RUNTIMES))}.')
    model = inference_copy(model)
    try:
        return _deploy(reparameterize_model(model, inplace=True), runtime, {}).eval()
    except FoldError as e:
        raise FoldError(e.layer, next((name for name, module in model.named_modules() if module is e.layer), '')) from None


def inference_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode that asks for no gradients; parametrised weights become plain ones.

    Raises ValueError on weights that can be neither copied nor traced: tensors of another kind, or made anew before each call.
    """
    for name, module in model.named_modules():
        if holds_other_weights(module):
            raise FoldError(module, name)
    model = copy.deepcopy(model).requires_grad_(False).eval().float()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _drop_parametrizations(module)
    return model


def _drop_parametrizations(module: nn.Module) -> None:
    """Keep what they make of the weights; PyTorch's own way changes a class that the module shares with the one it is a copy of."""
    weights = {name: getattr(module, name).detach() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _deploy(module: nn.Module, runtime: str, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Children first; `done` keeps what a module that is used in several places became."""
    if module not in done:
        for name, child in list(module._modules.items()):  # named_children leaves out a child's second name
            new = None if child is None else _deploy(child, runtime, done)
            if new is not child:
                setattr(module, name, new)
        done[module] = _replacement(module, runtime)
    return done[module]


def _replacement(module: nn.Module, runtime: str) -> nn.Module:
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        # a mean: of a pooled channels-last map the dynamo exporter makes a gather with computed indices
        return SelectAdaptivePool2d(pool_type='fast')
    deploy = getattr(module, 'deploy', None)
    return deploy(runtime) if callable(deploy) else module  # elsewhere the name is also a flag
