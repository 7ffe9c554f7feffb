"""The form in which a model is used and exported: folded, its tables stored, and written as a runtime wants it.

A module says what a runtime wants otherwise by a method `deploy(runtime) -> nn.Module`. It is called on a float32 copy in eval mode, after
the parts of the module and after all `fuse()`, and returns the module that stands in its place and computes the same: itself, changed, or
another. It may branch on the runtime:

- 'onnx': float32 in ONNX Runtime and its like.
- 'onnx-int8': the same, to be quantised: pointwise layers stay `nn.Linear`, a MatMul with a weight of its own, for which runtimes have fast
  kernels in 8 bits, and patch embeddings become one; a convolution has none.

For 'pytorch' it is not called: there `fuse()`, the folds below and the stored tables are all that is done.
"""
import copy
import math

import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, SelectAdaptivePool2d, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..arguments import check_types, show
from ..facts import image_shape
from ..layers import fold_batch_norm, fold_layer_scale, linear_of
from ..layers.fold import LAYER_SCALES, LAYERS, scale_layer
from ..layers.plain import FoldError, holds_other_weights, is_bare, is_plain
from . import verify
from .watch import Watched, watch

RUNTIMES = ('pytorch', 'onnx', 'onnx-int8')


@check_types
def deploy(model: nn.Module, input_size: int | tuple[int, ...], runtime: str = 'pytorch') -> nn.Module:
    """A copy of a model for inference at one image size, which computes the same to 1e-5 of an output's largest value.

    A float32 copy in eval mode, on the device of the model, without gradients. Batch norms and layer scales are folded into the layer
    before them, residual depthwise convolutions become one, branches merge (timm's `reparameterize_model`), tables for the size are stored,
    and parts that an image of this size does not pass, such as an auxiliary head, are dropped. The model itself is not changed. Takes any
    timm model, ours, their `features_only`, `DenseBackbone` and token-reduced forms.

    At another size the copy computes what the model would, or raises ValueError where something was stored or dropped for its own.

    Args:
        input_size: `H` for square, (H, W) or (C, H, W).
        runtime: 'pytorch'; 'onnx' and 'onnx-int8' give the form that is exported, which may be slower in PyTorch.

    Raises:
        ValueError: on a size that the model does not take, an unknown runtime, or a layer that cannot be folded, since it has adapters,
            hooks or weights of another kind, with its name.
        ExportError: if the copy does not compute the same.
    """
    _check_runtime(runtime)
    channels, height, width = image_shape(model, input_size)
    plain = inference_copy(model)
    place = next((tensor for tensor in (*plain.parameters(), *plain.buffers())), torch.empty(0)).device
    images = verify.photo(0, (channels, height, width)).to(place)
    expected = verify.make_case(plain, images, (0,)).outputs
    deployed = deploy_form(plain, runtime, images)
    found = verify.make_case(deployed, images, (0,)).outputs  # makes the tables that the model keeps for a size
    limit = verify.CHOICE_TOLERANCE if any(getattr(m, 'selects', False) for m in model.modules()) else 0
    for want, got in zip(expected, found, strict=True):
        if got.shape != want.shape:
            raise verify.ExportError(f'{type(model).__name__} in its form for inference gives {tuple(got.shape)}, not {tuple(want.shape)}.')
        got, want = got.cpu().numpy(), want.cpu().numpy()
        error, allowed = verify.difference(got, want), max(limit, verify.tolerance(want))
        if not error <= allowed:
            raise verify.ExportError(f'{type(model).__name__} in its form for inference differs by {error:.1e} of the largest value, '
                                     f'{allowed:.0e} is allowed.')
    return deployed


def deploy_form(model: nn.Module, runtime: str = 'onnx', images: Tensor | None = None) -> nn.Module:
    """A float32 copy of a model in inference form, folded and written as a runtime wants it; for timm's and other models too.

    images: of the one size that the copy is for; None for any size: then nothing is stored or dropped, and only modules fold that know by
        themselves what they can fold.

    Raises:
        ValueError: on a runtime that nothing is known about; on a layer that cannot be folded, since it has adapters, hooks or weights of
            another kind, with its name.
    """
    _check_runtime(runtime)
    model = inference_copy(model)
    try:
        model = reparameterize_model(model, inplace=True).requires_grad_(False)
        if images is not None:
            seen = watch(model, images)
            _fold(model, seen)
            if not getattr(model, 'objects', False):  # those that are found decide which parts they pass
                _drop(model, seen.idle, images)
            _store_tables(model, seen, images)
        return (model if runtime == 'pytorch' else _deploy(model, runtime, {})).eval()
    except FoldError as e:
        raise FoldError(e.layer, next((name for name, module in model.named_modules() if module is e.layer), '')) from None


def _check_runtime(runtime: str) -> None:
    if runtime not in RUNTIMES:
        raise ValueError(f'runtime={show(runtime)}: expected {", ".join(map(repr, RUNTIMES[:-1]))} or {RUNTIMES[-1]!r}.')


def inference_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode that asks for no gradients; parametrised weights become plain ones.

    Raises ValueError on weights that can be neither copied nor traced: tensors of another kind, or made anew before each call.
    """
    for name, module in model.named_modules():
        if holds_other_weights(module):
            raise FoldError(module, name)
    model = copy.deepcopy(model).requires_grad_(False).eval().float()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _drop_parametrizations(module)
    return model


def _drop_parametrizations(module: nn.Module) -> None:
    """Keep what they make of the weights; PyTorch's own way changes a class that the module shares with the one it is a copy of."""
    weights = {name: getattr(module, name).detach() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _deploy(module: nn.Module, runtime: str, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Children first; `done` keeps what a module that is used in several places became."""
    if module not in done:
        for name, child in list(module._modules.items()):  # named_children leaves out a child's second name
            new = None if child is None else _deploy(child, runtime, done)
            if new is not child:
                setattr(module, name, new)
        done[module] = _replacement(module, runtime)
    return done[module]


def _replacement(module: nn.Module, runtime: str) -> nn.Module:
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        # a mean: of a pooled channels-last map the dynamo exporter makes a gather with computed indices
        return SelectAdaptivePool2d(pool_type='fast')
    if runtime == 'onnx-int8' and is_plain(module, nn.Conv2d) and _cuts_patches(module):
        return PatchProduct(module)
    deploy = getattr(module, 'deploy', None)
    return deploy(runtime) if callable(deploy) else module  # elsewhere the name is also a flag


def _cuts_patches(conv: nn.Conv2d) -> bool:
    """Whether a convolution reads each pixel for one position alone, as a patch embedding does."""
    return (conv.kernel_size == conv.stride != (1, 1) and conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1)


class PatchProduct(nn.Module):
    """A patch embedding as the product that it is: (B, C, H, W) -> (B, C', H // h, W // w)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size = conv.kernel_size
        self.linear = linear_of(conv.weight.flatten(1), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h, w = self.kernel_size
        x = x[:, :, :H // h * h, :W // w * w].reshape(B, C, H // h, h, W // w, w).permute(0, 2, 4, 1, 3, 5)
        return self.linear(x.flatten(3)).permute(0, 3, 1, 2)


class _Unscaled:
    """In the place of a layer scale that was folded, in a forward that multiplies by it: changes nothing."""

    def __mul__(self, other: Tensor) -> Tensor:
        return other


# timm's blocks that scale by a parameter of their own, and the layer whose output it scales
_GAMMAS = {
    'beit.Block': {'gamma_1': 'attn.proj', 'gamma_2': 'mlp.fc2'},
    'cait.LayerScaleBlock': {'gamma_1': 'attn.proj', 'gamma_2': 'mlp.fc2'},
    'cait.LayerScaleBlockClassAttn': {'gamma_1': 'attn.proj', 'gamma_2': 'mlp.fc2'},
    'convnext.ConvNeXtBlock': {'gamma': 'mlp.fc2'},
    'edgenext.ConvBlock': {'gamma': 'mlp.fc2'},
    'edgenext.SplitTransposeBlock': {'gamma_xca': 'xca.proj', 'gamma': 'mlp.fc2'},
    'eva.EvaBlock': {'gamma_1': 'attn.proj', 'gamma_2': 'mlp.fc2'},
    'inception_next.MetaNeXtBlock': {'gamma': 'mlp.fc2'},
    'xcit.ClassAttentionBlock': {'gamma2': 'mlp.fc2'},
    'xcit.XCABlock': {'gamma1': 'attn.proj', 'gamma2': 'mlp.fc2', 'gamma3': 'local_mp.conv2'},
}
_WITHOUT = {'convnext.ConvNeXtBlock', 'inception_next.MetaNeXtBlock'}  # ask whether there is one, and reshape it


@torch.no_grad()
def _fold(model: nn.Module, seen: Watched) -> None:
    """Fold, in place, batch norms and layer scales into the layer that alone feeds them, and the scales that timm's blocks hold."""
    new = {}
    for layer, follower in seen.pairs.items():
        if isinstance(follower, LAYER_SCALES):
            new[follower] = fold_layer_scale(layer, follower)
        else:
            new[layer], new[follower] = fold_batch_norm(layer, follower)
    _replace(model, new)
    for block in model.modules():
        kind = type(block).__module__.removeprefix('timm.models.') + '.' + type(block).__name__
        for name, path in _GAMMAS.get(kind, {}).items():
            gamma, layer = block._parameters.get(name), _at(block, path)
            if gamma is not None and layer is not None:
                scale_layer(layer, gamma)
                delattr(block, name)
                setattr(block, name, None if kind in _WITHOUT else _Unscaled())


def _at(module: nn.Module, path: str) -> nn.Module | None:
    """The layer at a path, if it can be folded: nothing from there on down has hooks, adapters or weights of another kind."""
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        return None
    around = module.get_submodule(path.partition('.')[0])
    return layer if type(layer) in LAYERS and all(map(is_bare, around.modules())) else None


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]


class Dropped(nn.Module):
    """In the place of a part that images of one size do not pass."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, *args, **kwargs):
        raise ValueError(f'This copy of a model is for images of {self.size[0]}x{self.size[1]} alone: what another size needs was dropped. '
                         'Make one for this size with vitzoo.deploy.')


def _drop(model: nn.Module, idle: list[nn.Module], images: Tensor) -> None:
    _replace(model, dict.fromkeys(idle, Dropped(tuple(images.shape[2:]))))


class StoredRotation(nn.Module):
    """Rotary embedding that is stored for one grid."""

    def __init__(self, rope: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.rope = rope
        self.grid = grid
        self.register_buffer('table', rope.get_embed(shape=list(grid)), persistent=False)

    def get_embed(self, shape: tuple[int, int] | None = None) -> Tensor:
        return self.table if shape is not None and tuple(shape) == self.grid else self.rope.get_embed(shape)


class OneSize:
    """Forward hook that refuses images for which the tables of the model were not stored."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def __call__(self, module: nn.Module, args: tuple) -> None:
        size = tuple(map(int, args[0].shape[2:])) if args and isinstance(args[0], Tensor) else self.size
        if size != self.size:
            raise ValueError(f'Image of {"x".join(map(str, size))}: the position table of this copy is stored for '
                             f'{self.size[0]}x{self.size[1]}. Make one for this size with vitzoo.deploy.')


@torch.no_grad()
def _store_tables(model: nn.Module, seen: Watched, images: Tensor) -> None:
    """Resample, in place, the positions of columnar models once and for all, and keep rotary embeddings."""
    stored = False
    for module in model.modules():
        shape = seen.inputs.get(getattr(module, 'patch_embed', None))
        if shape is None:
            continue
        height, width = shape[2:]
        if isinstance(tables := getattr(module, 'position_tables', None), dict):
            owner = module if hasattr(module, 'grid_size') else module.patch_embed
            grid = tuple(math.ceil(n / p) for n, p in zip((height, width), module.patch_embed.patch_size, strict=True))
            table = tables['pos_embed'].resample(module.pos_embed, tables['pos_embed'].size, grid)
        elif isinstance(module, VisionTransformer | Eva) and module.dynamic_img_size:
            owner, grid = module.patch_embed, tuple(module.patch_embed.dynamic_feat_size((height, width)))
            if type(rope := getattr(module, 'rope', None)) in (RotaryEmbeddingCat, RotaryEmbeddingDinoV3):
                module.rope = StoredRotation(rope, grid)
            table = None if module.pos_embed is None else resample_abs_pos_embed(
                module.pos_embed, grid, tuple(owner.grid_size), 0 if module.no_embed_class else module.num_prefix_tokens)
        else:
            continue
        if table is not None and tuple(owner.grid_size) != grid:
            module.pos_embed, owner.grid_size, stored = nn.Parameter(table, requires_grad=False), grid, True
    if stored:
        model.register_forward_pre_hook(OneSize(tuple(images.shape[2:])))
