"""What a file for another image fits after a change of its values: position tables and patches are resampled, first convolutions get other
channels.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn as nn
from timm.layers import PatchEmbed, resample_abs_pos_embed, resample_patch_embed
from timm.models._input import get_model_traits
from timm.models._manipulate import adapt_input_conv

from .files import WEIGHT_DTYPES, StateDict
from .names import own_state

Size = tuple[int, int]
LARGEST_PATCH = 64  # along a side: what resampling costs grows with its fourth power


class Positions(NamedTuple):
    """A table of positions (1, prefix + h * w, C), and how it is brought from one size (h, w) to another.

    resample: (table, its size, new size) -> table.
    """
    size: Size
    resample: Callable[[torch.Tensor, Size, Size], torch.Tensor]
    prefix: int = 0


def adapt_positions(state: StateDict, model: nn.Module) -> list[str]:
    """Resample, in `state` itself, the position tables that were made for another size than the model's. Returns their names."""
    own, adapted = own_state(model), []
    for name, table in _position_tables(model).items():
        value = state.get(name)
        if value is None or value.ndim != 3 or value.shape[1] == own[name].shape[1]:
            continue
        size = grid_of(value.shape[1] - table.prefix, table.size)
        if size and value.dtype in WEIGHT_DTYPES and value.shape[::2] == own[name].shape[::2]:
            state[name] = table.resample(value, size, table.size)
            adapted.append(name)
    return adapted


def _position_tables(model: nn.Module) -> dict[str, Positions]:
    """By name: what the model's class says of itself (`position_tables`), or the `pos_embed` of timm's ViTs."""
    if hasattr(model, 'position_tables'):
        return model.position_tables
    table, size = getattr(model, 'pos_embed', None), getattr(getattr(model, 'patch_embed', None), 'grid_size', None)
    if not isinstance(table, torch.Tensor) or table.ndim != 3 or not size:
        return {}
    prefix = table.shape[1] - math.prod(size)
    if not 0 <= prefix <= getattr(model, 'num_prefix_tokens', 0):
        return {}

    def resample(table: torch.Tensor, size: Size, new_size: Size) -> torch.Tensor:
        return resample_abs_pos_embed(table, list(new_size), list(size), num_prefix_tokens=prefix)
    return {'pos_embed': Positions(tuple(size), resample, prefix)}


def grid_of(num_positions: int, like: Size) -> Size | None:
    """The grid of so many positions: square, or with sides as those of another one; None if neither can be."""
    if num_positions < 1:
        return None
    side, scale = math.isqrt(num_positions), math.sqrt(num_positions / math.prod(like))
    sizes = (side, side), (round(like[0] * scale), round(like[1] * scale))
    return next((size for size in sizes if math.prod(size) == num_positions), None)


def adapt_patches(state: StateDict, model: nn.Module) -> list[str]:
    """Resample, in `state` itself, the embedding of patches of another size than those of one of timm's ViTs. Returns its name, if so."""
    embed, name = getattr(model, 'patch_embed', None), 'patch_embed.proj.weight'
    value = state.get(name)
    if not isinstance(embed, PatchEmbed) or hasattr(model, 'layouts') or value is None or value.dtype not in WEIGHT_DTYPES:
        return []
    shape = own_state(model)[name].shape
    if value.ndim != 4 or value.shape[0] != shape[0] or value.shape[2:] == shape[2:] or not all(
            0 < length <= LARGEST_PATCH for length in (*value.shape[2:], *shape[2:])):
        return []
    state[name] = resample_patch_embed(value, list(shape[2:]))
    return [name]


def adapt_channels(state: StateDict, model: nn.Module) -> list[str]:
    """Give first convolutions in `state` the model's number of image channels, by timm's rule. Returns the names of those that changed."""
    own, adapted, config, traits = own_state(model), [], getattr(model, 'pretrained_cfg', {}), get_model_traits(model)
    convs = traits.get('first_conv', config.get('first_conv')) or ()
    for conv in [convs] if isinstance(convs, str) else convs:
        name = f'{conv}.weight'
        if name not in state or name not in own or state[name].dtype not in WEIGHT_DTYPES:
            continue
        weight, shape = state[name], own[name].shape
        if not weight.ndim == len(shape) == 4 or weight.shape == shape or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
            continue
        try:
            weight = adapt_input_conv(traits.get('in_chans', shape[1]), weight, base_chans=(config.get('input_size') or (3,))[0])
        except (NotImplementedError, AssertionError):  # timm knows none for these channels
            continue
        if weight.shape == shape:
            state[name] = weight
            adapted.append(name)
    return adapted
