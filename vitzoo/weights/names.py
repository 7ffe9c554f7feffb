"""Names of entries without what wrappers add to them, in files and in models alike."""
import re
from collections.abc import Iterable

import torch.nn as nn

from .files import StateDict
from .words import shown

# The only child of a module around another one: data parallelism and averages of weights; torch.compile; FSDP; activation checkpointing.
WRAPPERS = ('module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
_IN_NAMES = re.compile(rf'(?:^|(?<=\.))(?:{"|".join(WRAPPERS)})\.')
# What averages of weights count beside them, by torch's name and by mmengine's.
COUNTER = re.compile(r'^(n_averaged|steps)$')


def without_wrappers(name: str) -> str:
    return _IN_NAMES.sub('', name)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, data parallelism and averages of weights."""
    while len(module._modules) == 1 and (name := next(iter(module._modules))) in WRAPPERS:
        module = module._modules[name]
    return module


def own_state(module: nn.Module) -> StateDict:
    """The entries of a module, by names without wrappers."""
    return {without_wrappers(name): value for name, value in module.state_dict().items()}


def clean_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Each name without wrappers, to the name as it is. Raises ValueError if two are one without."""
    return unique(((without_wrappers(name), name) for name in names), where)


def unique(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Pairs (name in the model, name in the file) as a dict. Raises ValueError if two names in the file are for one entry."""
    result = {}
    for name, original in pairs:
        if name in result:
            raise ValueError(f'{where} has two names for one entry, {shown(result[name])} and {shown(original)}: leave one out.')
        result[name] = original
    return result
