"""Index maps, masks and matrices that depend on the size alone."""
from collections.abc import Callable
from functools import lru_cache, wraps

import numpy as np
import torch


def per_size(make: Callable[..., np.ndarray | tuple[np.ndarray, ...]]) -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
    """Keep the array or arrays that `make` returns for the latest sizes, and hand them out as CPU tensors, which nobody may write to.

    What is kept are arrays: a tensor that was made while tracing or on the meta device would be of no use afterwards. torch.compile and
    torch.export do not look inside; for them the table is a constant. Arguments are plain numbers and strings.
    """
    cached = lru_cache(maxsize=64)(make)

    @torch.compiler.allow_in_graph
    @wraps(make)
    def table(*sizes):
        arrays = cached(*sizes)
        return tuple(map(torch.from_numpy, arrays)) if isinstance(arrays, tuple) else torch.from_numpy(arrays)
    return table
