"""Checks of what a user can get wrong with any model: the image, the options that all have, and the numbers of a pyramid.

They look at ranges, and at what must fit together; types are the business of `vitzoo.arguments`.
"""
import operator
from collections.abc import Sequence

import torch
from timm.models import register_notrace_function

from ..arguments import show

# What an option may ask for: more is a slip, and would end in an allocator's error.
MOST = 2 ** 24  # channels or classes
MOST_RATIO = 100  # of a hidden width to its input's
MOST_BLOCKS = 1000  # of a stage
MOST_PLACES = 1024  # of a window, a patch or a grid of tokens, along one side


@register_notrace_function
def check_image(x: torch.Tensor, in_chans: int, min_size: tuple[int, int] = (1, 1), like: torch.Tensor | None = None) -> None:
    """Raise ValueError unless x is a floating-point (B, in_chans, H, W) batch with H and W of at least min_size.

    like: a parameter of the model, whose precision the image must have outside autocast.
    """
    if not isinstance(x, torch.Tensor):
        if isinstance(x, torch.fx.Proxy):
            raise ValueError('torch.fx traces the models as timm does, with what it must not look into: '
                             "timm.layers.create_feature_extractor, or torchvision's with "
                             'tracer_kwargs=dict(leaf_modules=timm.layers.get_notrace_modules(), '
                             'autowrap_functions=timm.layers.get_notrace_functions()). torch.export takes them as they are.')
        raise ValueError(f'Expected an image batch as a torch.Tensor of shape (B, {in_chans}, H, W), got a {type(x).__name__}.')
    if x.layout != torch.strided or x.is_nested:
        raise ValueError(f'Expected an image batch of shape (B, {in_chans}, H, W) as a dense tensor, got {x.layout}; use to_dense().')
    if x.ndim != 4:
        raise ValueError(f'Expected an image batch of shape (B, {in_chans}, H, W), got {x.ndim} dimensions: {tuple(x.shape)}.')
    if x.shape[1] != in_chans:
        raise ValueError(f'Expected {in_chans} channels, got {x.shape[1]} (shape {tuple(x.shape)}). '
                         f'Layout is (B, C, H, W); build the model with in_chans={x.shape[1]} for other images.')
    if not x.is_floating_point():
        raise ValueError(f'Expected a floating-point image, got {x.dtype}. Scale and normalise it first (timm.data.create_transform).')
    if like is not None and x.dtype != like.dtype and not _autocast_takes(x, like):
        raise ValueError(f'Expected an image of {like.dtype}, as the model is, got {x.dtype}. '
                         'Convert one of them by .to(dtype), or run the model under torch.autocast.')
    if x.shape[2] < min_size[0] or x.shape[3] < min_size[1]:
        raise ValueError(f'Image of {x.shape[2]}x{x.shape[3]} is too small: the minimum is {min_size[0]}x{min_size[1]}.')


def _autocast_takes(x: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether autocast is on, which brings both to one precision; of double it keeps its hands."""
    device = x.device.type
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return False
    return all(dtype in (torch.float16, torch.bfloat16, torch.float32) for dtype in (x.dtype, like.dtype))


def precision_of(model: torch.nn.Module) -> torch.Tensor | None:
    """The parameter that says which precision a model's images have: its first of floating point. For `check_image`."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter
    return None


def check_indices(name: str, indices: int | Sequence[int] | None, count: int) -> list[int]:
    """The levels from 0 to count - 1 that timm means: the last n by a number, all by None, else these, negative ones from the end.

    Raises ValueError on anything else.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, (tuple, list)):
        levels = [_index(i) for i in indices]
    else:
        last = _index(indices)
        levels = range(-last, 0) if last is not None and 0 < last <= count else []
    if not levels or not all(level is not None and -count <= level < count for level in levels):
        raise ValueError(f'{name}={show(indices)}: expected the number of last levels, 1 to {count}, or a list of levels from {-count} to '
                         f'{count - 1}.')
    return [level % count for level in levels]


def _index(value) -> int | None:
    """What behaves as an integer, as one; flags do not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):
        return None


def check_ratios(dims: Sequence[int], **ratios: float) -> None:
    """Raise ValueError unless each ratio leaves at least one channel of each width, and lies in what models have."""
    for name, ratio in ratios.items():
        if ratio > MOST_RATIO or min(dims) * ratio < 1:
            raise ValueError(f'{name}={show(ratio)}: expected a positive ratio of at most {MOST_RATIO} that leaves 1 channel of '
                             f'{min(dims)} at least.')


def check_stages(embed_dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int] | None = None, *, even: bool = False,
                 least: int = 1, **others: Sequence) -> None:
    """Raise ValueError unless each argument has one value per stage, every stage has channels and blocks, and channels divide into heads.

    even: the number of channels has to be even as well. least: channels of a stage. others: whatever else has one value per stage, by name.
    """
    if not embed_dims or not all(least <= dim <= MOST for dim in embed_dims):
        raise ValueError(f'embed_dims={show(embed_dims)}: expected {least} to {MOST} channels per stage.')
    if num_heads is not None:
        others = {'num_heads': num_heads, **others}
    for name, values in {'depths': depths, **others}.items():
        if len(values) != len(embed_dims):
            raise ValueError(f'{name}={show(values)}: expected one value per stage, {len(embed_dims)} as in embed_dims={show(embed_dims)}.')
    if not all(0 < depth <= MOST_BLOCKS for depth in depths):
        raise ValueError(f'depths={show(depths)}: expected at least 1 in every stage, and at most {MOST_BLOCKS}.')
    if num_heads is None:
        return
    for dim, heads in zip(embed_dims, num_heads, strict=True):
        if heads < 1 or dim % heads or even and dim % 2:
            raise ValueError(f'embed_dims={show(embed_dims)}, num_heads={show(num_heads)}: '
                             f'{dim} channels must {"be even and " if even else ""}divide into {heads} heads.')


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ValueError unless channels divide into heads."""
    if not 0 < embed_dim <= MOST or num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f'embed_dim={embed_dim}, num_heads={num_heads}: expected positive numbers, and channels, at most {MOST}, that '
                         'divide into the heads.')


def check_options(in_chans: int = 3, num_classes: int = 0, global_pool: str = '', drop_rate: float = 0, drop_path_rate: float = 0) -> None:
    """Raise ValueError on what timm would take, or answer with an assertion, and no model can mean."""
    if not 1 <= in_chans <= MOST:
        raise ValueError(f'in_chans={in_chans}: expected at least 1 image channel, and at most {MOST}.')
    if not 0 <= num_classes <= MOST:
        raise ValueError(f'num_classes={num_classes}: expected the number of classes, at most {MOST}, or 0 for pooled features.')
    if global_pool.removeprefix('fast') not in ('', 'avg', 'max', 'avgmax', 'catavgmax'):
        raise ValueError(f"global_pool={show(global_pool)}: expected 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.")
    check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)


def check_rates(**rates: float) -> None:
    """Raise ValueError unless each is a share from 0 to below 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f'{name}={show(rate)}: expected a rate from 0 to below 1.')


def check_pair(name: str, value: int | tuple[int, int], most: int = MOST_PLACES) -> tuple[int, int]:
    """The pair (rows, columns) that is meant by a positive number for both, or by a pair. Raises ValueError beyond `most`."""
    pair = value if isinstance(value, tuple) else (value, value)
    if not all(0 < n <= most for n in pair):
        raise ValueError(f'{name}={show(value)}: expected a positive number or pair (rows, columns), of at most {most}.')
    return pair


def check_choice(name: str, value: str | None, *choices: str | None) -> None:
    """Raise ValueError unless the value is one of these."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f'{name}={show(value)}: expected {", ".join(others)}{" or " if others else ""}{last}.')


def check_token_pool(global_pool: str, num_classes: int = 0) -> None:
    """Raise ValueError unless tokens can be pooled so, and on classes without pooling where their number is given."""
    if global_pool not in ('', 'avg', 'max', 'avgmax'):
        raise ValueError(f"global_pool={show(global_pool)}: expected 'avg', 'max', 'avgmax', or '' for none.")
    if num_classes and not global_pool:
        raise ValueError(f"global_pool='' with num_classes={num_classes}: expected pooling in front of a classifier, such as 'avg'.")
