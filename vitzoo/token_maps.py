"""Token maps: which positions of an image belong together, or are left, in each layer of a model."""
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch._dynamo
from torch import Tensor, nn

from .arguments import show
from .facts import model_name
from .layers import check_image, precision_of
from .layers.recording import Record, listen
from .weights.names import unwrapped, without_wrappers


class TokenMap(NamedTuple):
    """What a layer does with the positions of its map.

    By `kind`, labels say

    - 'groups': to which of `total` things a position belongs, from 0; `what` names them;
    - 'tokens', where tokens are reduced: which of the `total` that are left a patch is, or is part of, from 0; -1 where it is in none;
    - 'counts': how many of `total` look at a position.
    """
    layer: str  # the module, as in `named_modules`
    what: str  # 'windows', 'super tokens', 'semantic tokens', 'compressed tokens', 'global tokens', 'tokens', 'regions', 'queries'
    kind: str
    labels: Tensor  # int64 (h, w), on the CPU
    total: int
    stride: tuple[int, int]  # pixels of a position, height and width


def token_map(model: nn.Module, image: Tensor) -> list[TokenMap]:
    """Run a model on an image and tell, layer by layer, which positions belong together or are left.

    | model | layers | what |
    | --- | --- | --- |
    | SViT | super token attention | the super token that a position belongs to most |
    | BiFormer | routing attention | how many regions attend to a position's region (counts) |
    | DaViT, STViT | window attention | windows |
    | STViT, STViT-DeiT | generation | the semantic token that looks at a position most, mean over heads |
    | STViT | recovery | the semantic token that a position looks at most |
    | STViT-DeiT | pooling | windows |
    | LookupViT | blocks | the compressed token that looks at a position most |
    | DualToken-ViT | blocks | the global token that a position looks at most |
    | with reduced tokens | blocks | the token that a patch is part of behind the block, -1 for none |
    | by Sparsifiner | attention | how many queries of all patches and heads see a patch (counts) |

    Layers in which every position sees all others are left out.

    Args:
        model: one of ours, or a transformer of timm's after `vitzoo.reduce_tokens`; its `features_only` form or a `DenseBackbone`;
            compiled or wrapped, it is run as it is without that. It runs in eval mode, without gradients.
        image: one image as the model takes it, (C, H, W) or (1, C, H, W).

    Raises:
        ValueError: on more than one image, or one that the model does not take; on a model that has nothing to tell.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'model={show(model)}: expected a torch.nn.Module, e.g. from timm.create_model.')
    model = unwrapped(model)
    body = next((m for m in model.modules() if hasattr(m, 'forward_intermediates')), model)
    x = image[None] if isinstance(image, Tensor) and image.ndim == 3 else image
    check_image(x, getattr(body, 'in_chans', 3), like=precision_of(model))
    if len(x) != 1:
        raise ValueError(f'image of shape {tuple(image.shape)}: expected one image, (C, H, W) or (1, C, H, W).')
    with listen() as records, _inference(model), _uncompiled(model):
        model(x)
    if not records:
        raise ValueError(f'{model_name(model)} has no token maps: none of its layers says which positions belong together or are left. '
                         'Expected a model of ours, such as svit_small, or one whose tokens were reduced by vitzoo.reduce_tokens.')
    names = {module: without_wrappers(name) for name, module in body.named_modules()}
    return [_finish(record, names[record.module], body, x.shape[2:]) for record in records]


def _finish(record: Record, layer: str, body: nn.Module, image_size: tuple[int, int]) -> TokenMap:
    stage = re.match(r'stages\.(\d+)', layer)
    if stage:
        stride = (body.feature_info[int(stage[1])]['reduction'],) * 2
    else:
        stride = tuple(body.patch_embed.patch_size)
    labels = record.labels[0].long().cpu()
    if labels.ndim == 1:
        labels = labels.view(tuple(-(-n // s) for n, s in zip(image_size, stride, strict=True)))
    return TokenMap(layer, record.what, record.kind, labels, record.total, stride)


def _uncompiled(model: nn.Module) -> AbstractContextManager:
    """Runs parts that were compiled as they are; other threads too, so only where there are such parts."""
    compiled = any(isinstance(m, torch._dynamo.OptimizedModule) or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance('force_eager') if compiled else nullcontext()


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Eval mode, without gradients, each module left as it was; nothing is written where all are in eval mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
