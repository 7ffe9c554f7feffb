"""When a layer is no more than its weight.

A layer is called, since users' tools put adapters, hooks, masks, parametrisations and quantised weights around it or in its place. To read
its weight instead is a short cut for layers that are as this package made them.
"""
import torch
import torch.nn as nn
from torch.fx.experimental import proxy_tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_STAND_IN = getattr(proxy_tensor, '_AttrProxy', ())


def is_bare(layer: nn.Module) -> bool:
    """Whether to call the layer is to call its class's own `forward` on plain parameters: no hooks, no weights of another kind.

    Hooks on all modules at once, which profilers set, do not count, nor do those of profilers on this one.
    """
    return not (
        any(not _only_looks(hook) for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()))
        or layer._backward_pre_hooks or layer._backward_hooks
        or 'forward' in vars(layer)  # put on the object, as offloading tools do
        or any(p is not None and not isinstance(p, nn.Parameter) for p in layer._parameters.values())
        or holds_other_weights(layer))


def _only_looks(hook) -> bool:
    """Whether a hook is a profiler's, which changes nothing: those of fvcore, and of ours, which say so."""
    return type(hook).__module__.startswith('fvcore.') or getattr(hook, 'only_looks', False)


def holds_other_weights(layer: nn.Module) -> bool:
    """Whether weights of the layer itself are tensors of another kind, such as quantised ones, or are made anew by a hook before each call,
    as pruning and the older form of spectral norm do."""
    made = layer._forward_pre_hooks and any(isinstance(value, torch.Tensor) for value in vars(layer).values())
    return bool(made) or any(is_traceable_wrapper_subclass(p) for p in layer._parameters.values())


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer.

    Where a model has a module under two names, torch.export calls every module through a stand-in, whose type is a subclass made for it.
    """
    return type(layer.get_base() if isinstance(layer, _STAND_IN) else layer)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the layer is a bare one of exactly this class."""
    return kind_of(layer) is kind and is_bare(layer)


class FoldError(ValueError):
    """A layer, of this name in the model if that is known, is more than its weight and cannot be folded."""

    def __init__(self, layer: nn.Module, name: str = ''):
        self.layer = layer
        kind = type(layer).__name__
        super().__init__(
            f'{f"{name} ({kind})" if name else kind} cannot be folded: it has adapters, hooks, a parametrisation, a mask or quantised '
            'weights. Merge them by merge_and_unload() of peft, torch.nn.utils.parametrize.remove_parametrizations or '
            'torch.nn.utils.prune.remove; take hooks off.')


def require_bare(*layers: nn.Module) -> None:
    """Raise FoldError, a ValueError, on a layer that cannot be folded, since it is more than its weight."""
    for layer in layers:
        if not is_bare(layer):
            raise FoldError(layer)


def require_plain(kind: type[nn.Module], *layers: nn.Module) -> None:
    """Raise FoldError, a ValueError, on a layer whose weight does not say all that it computes."""
    for layer in layers:
        if not is_plain(layer, kind):
            raise FoldError(layer)
