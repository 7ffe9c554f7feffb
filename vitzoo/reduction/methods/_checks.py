"""Checks that several methods share."""
from collections.abc import Sequence

from torch import nn

from ...arguments import show
from ...layers import precision_of


def rates_at(rates: float | tuple[float, ...], locations: tuple[int, ...]) -> dict[int, float]:
    """Location -> rate, of one rate for all or one for each. Raises ValueError where there are not as many."""
    if not isinstance(rates, tuple):
        return dict.fromkeys(locations, rates)
    if len(rates) != len(locations):
        raise ValueError(f'keep_rate={show(rates)}: expected one number, or {len(locations)} as there are locations.')
    return dict(zip(locations, rates, strict=True))


def check_locations(locations: Sequence[int], model: nn.Module, name: str = 'locations') -> None:
    """Raise ValueError unless these are blocks of the model, from 0, ascending."""
    depth = len(model.blocks)
    if list(locations) != sorted(set(locations)) or not all(0 <= i < depth for i in locations):
        raise ValueError(f'{name}={show(tuple(locations))}: expected blocks in ascending order, from 0 to {depth - 1}.')


def factory_of(model: nn.Module) -> dict:
    """Device and precision for new parts of a model."""
    parameter = precision_of(model)
    return {'device': parameter.device, 'dtype': parameter.dtype}
