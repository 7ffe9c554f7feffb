"""Checks of what a user can get wrong with any model: the image, the options that all have, and the numbers of a pyramid."""
from collections.abc import Sequence

import torch
from timm.layers import to_2tuple
from timm.models import register_notrace_function


@register_notrace_function
def check_image(x: torch.Tensor, in_chans: int, min_size: tuple[int, int] = (1, 1)) -> None:
    """Raise ValueError unless x is a floating-point (B, in_chans, H, W) batch with H and W of at least min_size."""
    if x.ndim != 4:
        raise ValueError(f'Expected an image batch of shape (B, {in_chans}, H, W), got {x.ndim} dimensions: {tuple(x.shape)}.')
    if x.shape[1] != in_chans:
        raise ValueError(f'Expected {in_chans} channels, got {x.shape[1]} (shape {tuple(x.shape)}). '
                         f'Layout is (B, C, H, W); build the model with in_chans={x.shape[1]} for other images.')
    if not x.is_floating_point():
        raise ValueError(f'Expected a floating-point image, got {x.dtype}. Scale and normalise it first (timm.data.create_transform).')
    if x.shape[2] < min_size[0] or x.shape[3] < min_size[1]:
        raise ValueError(f'Image of {x.shape[2]}x{x.shape[3]} is too small: the minimum is {min_size[0]}x{min_size[1]}.')


def check_positive(**numbers: float) -> None:
    """Raise ValueError on a number that is zero or negative."""
    for name, value in numbers.items():
        if value <= 0:
            raise ValueError(f'{name}={value}: expected a positive number.')


def check_stages(embed_dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int] | None = None, *, even: bool = False,
                 **others: Sequence) -> None:
    """Raise ValueError unless each argument has one value per stage, every stage has channels and blocks, and channels divide into heads.

    even: the number of channels has to be even as well. others: whatever else has one value per stage, by name.
    """
    if not isinstance(embed_dims, (tuple, list)) or not embed_dims or min(embed_dims) < 1:
        raise ValueError(f'embed_dims={embed_dims!r}: expected a positive number of channels per stage.')
    if num_heads is not None:
        others = {'num_heads': num_heads, **others}
    for name, values in {'depths': depths, **others}.items():
        if not isinstance(values, (tuple, list)) or len(values) != len(embed_dims):
            raise ValueError(f'{name}={values!r}: expected one value per stage, {len(embed_dims)} as in embed_dims={tuple(embed_dims)}.')
    if min(depths) < 1:
        raise ValueError(f'depths={tuple(depths)}: expected at least 1 in every stage.')
    if num_heads is None:
        return
    for dim, heads in zip(embed_dims, num_heads, strict=True):
        if heads < 1 or dim % heads or even and dim % 2:
            raise ValueError(f'embed_dims={tuple(embed_dims)}, num_heads={tuple(num_heads)}: '
                             f'{dim} channels must {"be even and " if even else ""}divide into {heads} heads.')


def check_options(in_chans: int = 3, num_classes: int = 0, global_pool: str = '', drop_rate: float = 0, drop_path_rate: float = 0) -> None:
    """Raise ValueError on what timm would take, or answer with an assertion, and no model can mean."""
    if in_chans < 1:
        raise ValueError(f'in_chans={in_chans}: expected at least 1 image channel.')
    if num_classes < 0:
        raise ValueError(f'num_classes={num_classes}: expected the number of classes, or 0 for pooled features.')
    if global_pool.removeprefix('fast') not in ('', 'avg', 'max', 'avgmax', 'catavgmax'):
        raise ValueError(f"global_pool={global_pool!r}: expected 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.")
    check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)


def check_rates(**rates: float) -> None:
    """Raise ValueError unless each is a share from 0 to below 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f'{name}={rate}: expected a rate from 0 to below 1.')


def check_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """The pair (rows, columns) that is meant by a positive number for both, or by a pair. Raises ValueError on anything else."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else to_2tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair):
        raise ValueError(f'{name}={value!r}: expected a positive number or pair (rows, columns).')
    return pair


def check_choice(name: str, value: str | None, *choices: str | None) -> None:
    """Raise ValueError unless the value is one of these."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f'{name}={value!r}: expected {", ".join(others)} or {last}.')


def check_token_pool(global_pool: str, num_classes: int = 0) -> None:
    """Raise ValueError unless tokens can be pooled so, and on classes without pooling where their number is given."""
    if global_pool not in ('', 'avg', 'max', 'avgmax'):
        raise ValueError(f"global_pool={global_pool!r}: expected 'avg', 'max', 'avgmax', or '' for none.")
    if num_classes and not global_pool:
        raise ValueError(f"global_pool='' with num_classes={num_classes}: expected pooling in front of a classifier, such as 'avg'.")
