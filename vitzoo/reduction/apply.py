"""`reduce_tokens` and `restore_tokens`: a model changes its class, and nothing else, for as long as its tokens are reduced."""
import copyreg
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, wraps

import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..arguments import check_types, show
from ..layers import Kept, check_choice, check_image, check_indices, precision_of, recording, specialize_size
from ..weights.names import unwrapped
from .method import Method, Tokens
from .methods import METHODS
from .runner import ATTENTIONS, BLOCKS, MODELS, embed, run_block


def _of_any_batch(forward: Callable) -> Callable:
    """An empty batch has results of its shape, which timm's layers do not give: those of one image, less that image."""
    @wraps(forward)
    def forward_any(self, x, *args, **kwargs):
        if isinstance(x, Tensor) and x.ndim == 4 and x.shape[0] == 0:
            return tree_map(lambda y: y[:0], forward(self, x.new_zeros(1, *x.shape[1:]), *args, **kwargs))
        return forward(self, x, *args, **kwargs)
    return forward_any


class Reduced:
    """Mixin in front of a timm transformer whose tokens are reduced by `self.reduction`.

    `forward_features` answers the tokens that the head looks at: those that are left, (B, P + N, C). Where a token stands for several
    patches and the model pools over patches, it answers a copy for each patch, so that the head counts them. Maps of
    `forward_intermediates` have the full grid.
    """
    selects = True  # read by vitzoo.export: a near tie can be resolved the other way
    exportable_dynamic_size = 'the numbers of its tokens are those of one size'
    reduction: Method

    @_of_any_batch
    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images (B, C, H, W) -> tokens after the final norm. Raises ValueError on a mask, which reduced tokens have no place for."""
        return self.to_head(self.forward_tokens(x, attn_mask, is_causal, remember=self._pools_patches() or recording()))

    def forward_tokens(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, remember: bool = True) -> Tokens:
        """Images (B, C, H, W) -> tokens behind the last block, with all that the method keeps of their way, or without."""
        tokens = self._embed(x, attn_mask, is_causal, remember)
        for i in range(len(self.blocks)):
            tokens = run_block(self, self.reduction, i, tokens)
        return tokens

    def forward_kept(self, x: Tensor) -> Kept:
        """Images (B, C, H, W) -> the patch tokens behind the last block as they are, and where each patch went: for recover layers."""
        if not x.shape[0]:
            kept = self.forward_kept(x.new_zeros(1, *x.shape[1:]))
            return Kept(kept.tokens[:0], kept.grid, lambda: kept.labels()[:0])
        tokens = self.forward_tokens(x)
        return Kept(tokens.patches, tokens.grid, lambda: self.reduction.labels(tokens))

    @_of_any_batch
    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            return_prefix_tokens: bool = False,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
            output_dict: bool = False,
            attn_mask: Tensor | None = None,
            is_causal: bool = False,
    ):
        """timm's, with maps (B, C, h, w) or tokens (B, h * w, C) restored to the full grid by the method."""
        check_choice('output_fmt', output_fmt, 'NCHW', 'NLC')
        taps = check_indices('indices', indices, len(self.blocks))
        maps, prefixes = [], []
        tokens = self._embed(x, attn_mask, is_causal)
        for i in range(max(taps) + 1 if stop_early else len(self.blocks)):
            tokens = run_block(self, self.reduction, i, tokens)
            if i in taps:
                y = self.norm(tokens.x) if norm else tokens.x
                patches, grid = self.reduction.restore(y[:, tokens.num_prefix:], tokens)
                patches = patches.to(y.dtype)  # one precision for all maps, under autocast too
                prefixes.append(y[:, :tokens.num_prefix])
                maps.append(patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() if output_fmt == 'NCHW' else patches)
        with_prefix = return_prefix_tokens and self.num_prefix_tokens
        if output_dict:
            result = {'image_intermediates': maps}
            if with_prefix:
                result['image_intermediates_prefix'] = prefixes
            return result if intermediates_only else {**result, 'image_features': self.to_head(tokens)}
        if with_prefix:
            maps = list(zip(maps, prefixes, strict=True))
        return maps if intermediates_only else (self.to_head(tokens), maps)

    def _embed(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool, remember: bool = True) -> Tokens:
        if attn_mask is not None or is_causal:
            raise ValueError('attn_mask and is_causal have no meaning where tokens are reduced; call restore_tokens(model) first.')
        check_image(x, self.in_chans, like=precision_of(self))
        specialize_size(x)
        return self.reduction.start(self, embed(self, x)._replace(remember=remember))

    def to_head(self, tokens: Tokens) -> Tensor:
        """Tokens behind the last block -> what `forward_head` takes."""
        x = self.norm(tokens.x)
        if not self._pools_patches():
            return x
        prefix, patches = x[:, :tokens.num_prefix], x[:, tokens.num_prefix:]
        pooled = self.reduction.to_pool(patches, tokens)
        return x if pooled is patches else torch.cat([prefix, pooled], dim=1)

    def _pools_patches(self) -> bool:
        return self.attn_pool is not None or self.global_pool not in ('', 'token')

    def __reduce_ex__(self, protocol: int):  # the class is made here and has no name that pickle could import
        return _blank, (_class_behind(type(self)),), self.__getstate__()


@lru_cache(None)
def _reduced(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f'Reduced{kind.__name__}', (Reduced, kind), {'__module__': __name__, '__doc__': Reduced.__doc__})


def _class_behind(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.__mro__[kind.__mro__.index(Reduced) + 1]


def _blank(kind: type[nn.Module]) -> nn.Module:
    return copyreg.__newobj__(_reduced(kind))


def reduce_tokens(model: nn.Module, method: str | Method, **options) -> nn.Module:
    """Make a vision transformer cheaper: from now on it drops or merges tokens on their way through the blocks.

    Args:
        model: timm's `VisionTransformer` or `Eva` (DINOv3, EVA-02, PE), at any size, pretrained or not; its `features_only` form or a
            `DenseBackbone`. It is changed in place: another class, the same parameters under the same names. Methods that learn add
            parts under the names they were published with.
        method: 'evit', 'tome', ... (`vitzoo.reduction.METHODS`), or a `Method` of your own.
        options: of the method; see its class. Called again, the same method with other options keeps what was learned.

    In blocks that the method looks into, and once tokens have sizes, layers are called one by one: hooks on such a block as a whole, or on
    its `attn`, are not. Hooks on layers are, and so are adapters.

    Returns:
        The model. Its maps (`forward_intermediates`, `features_only`, `DenseBackbone`) still have the full grid.

    Raises:
        ValueError: before anything changes: a model, or a kind of block, that cannot be served; an unknown method; a value out of range.
        TypeError: an option that the method does not have.
    """
    method = _build(method, options)
    vit = find_transformer(model)
    _check_model(vit, method)
    previous = vit.reduction if isinstance(vit, Reduced) else None
    if type(previous) is not type(method):
        if previous is not None:
            restore_tokens(vit)
        method.attach(vit)
    if not isinstance(vit, Reduced):
        vit.__class__ = _reduced(type(vit))
    vit.reduction = method
    return model


def restore_tokens(model: nn.Module) -> nn.Module:
    """Undo `reduce_tokens`: the model is again what it was, bit for bit. Nothing happens to one whose tokens are not reduced."""
    vit = find_transformer(model)
    if isinstance(vit, Reduced):
        vit.reduction.detach(vit)
        del vit.reduction
        vit.__class__ = _class_behind(type(vit))
    return model


def find_transformer(model: nn.Module) -> nn.Module:
    """The transformer inside timm's feature wrapper, a `DenseBackbone`, torch.compile and the like.

    Raises ValueError where there is none that tokens could be reduced in.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'model={show(model)}: expected a torch.nn.Module, e.g. from timm.create_model.')
    inner = unwrapped(model)
    if isinstance(inner, FeatureGetterNet):
        inner = unwrapped(inner.model)
    if isinstance(inner, MODELS):
        return inner
    found = [module for module in inner.modules() if isinstance(module, MODELS)]
    for module in inner.modules() if not found else ():
        _check_own(module)
    if len(found) != 1:
        raise ValueError(f"{type(inner).__name__}: expected timm's VisionTransformer or Eva, or a model with one of them inside, found "
                         f'{len(found)}.')
    return found[0]


def _build(method: str | Method, options: dict) -> Method:
    if isinstance(method, Method):
        if options:
            raise TypeError(f'a {type(method).__name__} has its options already, got {", ".join(options)}')
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f'method={show(method)}: expected {", ".join(map(repr, METHODS))}, or a vitzoo.reduction.Method of your own.')
    kind = METHODS[method]
    names = [field.name for field in fields(kind)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f'{method!r} has no option {unknown[0]!r}; there are: {", ".join(names)}')
    return check_types(kind)(**options)


def _check_own(model: nn.Module) -> None:
    """Raise ValueError on a model that does something of the kind itself, with the sentence in which its class says so."""
    reason = getattr(model, 'why_no_reduction', None)
    if reason:
        raise ValueError(f'{type(model).__name__} {reason}')


def _check_known(name: str, module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Raise ValueError unless the module computes what one of these classes does: it is one, or inherits the forward."""
    own = ' with a forward of its own' if 'forward' in vars(module) else ''
    if own or not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds):
        raise ValueError(f'{name} is a {type(module).__name__}{own}, whose parts token reduction does not know; expected a '
                         f'{", ".join(kind.__name__ for kind in kinds[:-1])} or {kinds[-1].__name__} of timm.')


def _check_model(vit: nn.Module, method: Method) -> None:
    _check_own(vit)
    kind = _class_behind(type(vit)) if isinstance(vit, Reduced) else type(vit)
    for name in ('forward_features', 'forward_intermediates'):
        if all(getattr(kind, name) is not getattr(known, name) for known in MODELS) or name in vars(vit):
            raise ValueError(f"{kind.__name__} has a {name} of its own, which the reduced model would not run; expected that of timm's "
                             'VisionTransformer or Eva.')
    for i, block in enumerate(vit.blocks):
        _check_known(f'blocks.{i}', block, BLOCKS)
        _check_known(f'blocks.{i}.attn', block.attn, ATTENTIONS)
    if getattr(vit.patch_drop, 'prob', 0):
        raise ValueError(f'patch_drop_rate={vit.patch_drop.prob}: patches that are dropped at random do not go with token reduction; build '
                         'the model with patch_drop_rate=0.')
    if method.needs_class_token and vit.cls_token is None:
        raise ValueError(f'{type(method).__name__} goes by the attention of the class token, and this {type(vit).__name__} has none; '
                         "choose 'tome', 'gtp', 'expedite', or 'select' with score='column' or 'similarity'.")
    method.check(vit)
