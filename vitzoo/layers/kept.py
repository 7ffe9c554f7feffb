"""What a model with fewer tokens than positions hands to a recover layer."""
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Kept(NamedTuple):
    """The tokens that are left of a grid."""
    tokens: Tensor  # (B, N, C)
    grid: tuple[int, int]  # (h, w)
    labels: Callable[[], Tensor]  # () -> (B, h * w), the token that each position is part of, from 0, or -1; computed where it is asked for
