"""The models that tests run over: what the registry has, so that a new family is picked up without a list."""
import functools
import re

import pytest
import timm
import torch

import vitzoo  # noqa: F401  (registers the models)


def family_of(name: str) -> str:
    return timm.model_entrypoint(name).__module__.split('.')[-1]


NAMES = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('vitzoo.')]
MICRO = [name for name in NAMES if name.endswith('_micro')]
FAMILIES = {family: [name for name in NAMES if family_of(name) == family] for family in sorted(set(map(family_of, NAMES)))}
# the micro model of each family: of several generations that with the plain name
FIRST = {family: min((name for name in names if name in MICRO), key=len) for family, names in FAMILIES.items()}


def micro_of(name: str) -> str:
    """The micro model of a model's family, and of its generation where that has one of its own."""
    micro = [other for other in FAMILIES[family_of(name)] if other in MICRO]
    return max(micro, key=lambda other: (len({*other.split('_')} & {*name.split('_')}), -len(other)))


def build(name: str, **kwargs) -> torch.nn.Module:
    """A model in eval mode whose layer scales and running statistics are far from their initial values, which could hide a mistake."""
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if 'gamma' in key or 'layer_scale' in key:
                value.fill_(0.5)
            elif key.endswith('running_mean'):
                value.normal_(std=0.1)
            elif key.endswith('running_var'):
                value.uniform_(0.8, 1.2)
    return model


@functools.cache
def is_columnar(name: str) -> bool:
    """Whether the maps of a model, ours or timm's, have one stride."""
    with torch.device('meta'):
        return len({level['reduction'] for level in timm.create_model(name).feature_info}) == 1


@functools.cache
def attends(name: str) -> bool:
    """Whether a model of ours has attention among positions, whose maps and groups can be seen."""
    with torch.device('meta'):
        return getattr(timm.create_model(name), 'attends', True)


def is_large(name: str) -> bool:
    """Whether a name says base, large or huge, as of a model or of a golden case."""
    return bool(re.search(r'_(base|large|huge)', name))


def slow_if(condition, names) -> list:
    """Parameters of a test, of which those are left to `make test-all` that fulfil the condition."""
    return [pytest.param(name, marks=pytest.mark.slow if condition(name) else ()) for name in names]


def first_quick(names) -> list:
    """All of them in `make test-all`, one alone in `make test`."""
    first, *_ = names
    return slow_if(lambda name: name != first, names)
