"""Index maps, masks and matrices that depend on the size alone."""
import operator
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Lock

import numpy as np
import torch
import torch._dynamo

MAX_KEPT = 64  # sizes of one table


def per_size(make: Callable[..., np.ndarray | tuple[np.ndarray, ...]]) -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
    """A function of sizes that returns one or several arrays -> `table(*sizes, like=None)`, which returns them as tensors on the
    device of `like` (the CPU), real numbers in its precision (as they are), indices in int64. Nobody may write to them.

    For the latest sizes arrays and tensors are kept (until `table.forget()`), so that nothing moves between host and device when a size
    comes again. Sizes are numbers, strings or tuples of them; those that torch.compile has made symbolic become numbers, which compiles
    anew for another size. For torch.compile and torch.export a table is a constant.
    """
    arrays = lru_cache(MAX_KEPT)(make)
    kept, lock = OrderedDict(), Lock()

    @torch.compiler.assume_constant_result
    def tensors(sizes: tuple, device: torch.device, dtype: torch.dtype | None) -> tuple[torch.Tensor, ...]:
        # a tuple, whose parts torch.compile names apart when there are several in a graph
        key = sizes, device, dtype
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_fake(torch.empty(0))
        if not tracing:
            with lock:
                if key in kept:
                    kept.move_to_end(key)
                    return kept[key]
        made = arrays(*sizes)
        with torch.inference_mode(False):  # what training uses later must not be a tensor of inference
            result = tuple(_to_tensor(array, device, dtype) for array in (made if isinstance(made, tuple) else (made,)))
        if not tracing and not any(map(_is_fake, result)):  # torch.fx has a proxy for the device
            for tensor in result:
                torch._dynamo.mark_static(tensor)  # its own sizes are numbers, also where those of images are symbolic
            with lock:
                kept[key] = result
                if len(kept) > MAX_KEPT:
                    kept.popitem(last=False)
        return result

    @wraps(make)
    def table(*sizes, like: torch.Tensor | None = None):
        place = (torch.device('cpu'), None) if like is None else (like.device, like.dtype)
        result = tensors(tuple(map(_plain, sizes)), *place)
        return result[0] if len(result) == 1 else result
    table.forget = kept.clear
    return table


def _plain(size: object) -> object:
    """A number that TorchScript or torch.compile trace as a number; all else as it is."""
    return operator.index(size) if isinstance(size, (int, torch.SymInt, torch.Tensor)) else size


def _is_fake(tensor: torch.Tensor) -> bool:
    """Whether tensors that are made here and now are those of a tracer or of a function transform, of no use afterwards."""
    return type(tensor) is not torch.Tensor or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _to_tensor(array: np.ndarray, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
    return torch.from_numpy(array).to(device, dtype if np.issubdtype(array.dtype, np.floating) else None)


def specialize_size(image: torch.Tensor) -> None:
    """Have torch.compile take height and width of the image (B, C, H, W) for numbers, a graph for each: what follows needs tables."""
    if torch.compiler.is_compiling():
        for length in image.shape[2:]:
            operator.index(length)
