"""`DenseBackbone`: one interface to the feature maps of every model, ours or timm's, hierarchical or columnar."""
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, to_2tuple
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitzoo.arguments import check_types, show
from vitzoo.layers import check_image, precision_of
from vitzoo.reduction import reduce_tokens
from vitzoo.weights import LoadReport, load_checkpoint
from vitzoo.weights.names import unwrapped

from .pyramid import SimpleFeaturePyramid
from .recover import make_recover_layer, recovered_map

STRIDES = (4, 8, 16, 32)


class DenseBackbone(nn.Module):
    """A timm model as a pyramid: an image `(B, in_chans, H, W)` to one contiguous `(B, C, ceil(H / stride), ceil(W / stride))` map a level.

    Args:
        model_name: any registered name, with or without a tag (`'svit_small.in1k'`).
        out_indices: ascending levels, 0 to 3 for strides 4, 8, 16, 32. Nothing behind the last one is built.
        pretrained: load the published weights of the tag, downloading them if needed.
        checkpoint_path: what `load` takes: a file in any published layout; instead of `pretrained`.
        out_norm: True for the normalisation that the family's published dense code puts on its outputs (a LayerNorm over the
            channels with the `dense_norm_eps` of the model class, or another norm by its `dense_norm`; most have none), `'layer'` for a
            LayerNorm on any, False for none.
        frozen_stages: 0 freezes the stem, k also the first k stages (quarters of a columnar model's blocks): no gradient, and eval mode
            whatever `train()` says. -1: nothing.
        norm_eval: keep every BatchNorm in eval mode, so that its running statistics stay as they are.
        with_cp: recompute activations in the backward pass to save memory.
        reduction: `dict(method='expedite', ...)`, the method and options of `vitzoo.reduce_tokens`: a vision transformer of timm's drops or
            merges tokens on their way and restores its last map to the full grid. What a method learns is never frozen.
        recover: how a columnar model that dropped or merged tokens comes back to the full grid: 'method' for its own way; 'nearest' for the
            features of the nearest token, at any size; 'learnt' for queries that are learnt for each position and attend to the tokens, at
            the model's `img_size` alone (`vitzoo.dense.recover`).
        model_kwargs: go to the model (`in_chans`, `drop_path_rate`, ...).

    Our models see the image as it is. Others get zeros at the right and bottom up to a multiple of their largest stride, and their maps
    are cropped. A columnar model (ViT, STViT-DeiT, LookupViT), whose maps have one stride, gives its last one, recovered to the full
    grid where it dropped tokens, and a `SimpleFeaturePyramid` makes the levels of it. So it makes the levels that are finer than the
    finest map of a hierarchical model (DualToken-ViT, LeViT) of that map.

    Attributes: `body` (the feature model), `recover_layer` (None for the model's own way), `pyramid` (of what the model itself does not
    have; None where it has all), `out_indices`, `out_channels` and `strides` (one entry a map).

    Raises:
        ValueError: an argument out of range; a model without the levels asked for, whose tokens cannot be reduced, or that has nothing to
            recover; an image of another form, or of another size where the model, or what it learnt to recover, knows only one.
        TypeError: an argument that the model, or an option that the reduction method, does not have.
    """

    @check_types
    def __init__(
            self,
            model_name: str,
            out_indices: Sequence[int] = (0, 1, 2, 3),
            *,
            pretrained: bool | str = False,
            checkpoint_path: str | os.PathLike | None = None,
            out_norm: bool | str = True,
            frozen_stages: int = -1,
            norm_eval: bool = False,
            with_cp: bool = False,
            reduction: dict | None = None,
            recover: str = 'method',
            **model_kwargs,
    ):
        super().__init__()
        _check_arguments(model_name, out_indices, pretrained, checkpoint_path, out_norm)

        probe, model_kwargs, self.fixed_size = _probe(model_name, model_kwargs)
        if reduction is not None:  # refused, if so, before anything is built or downloaded
            _reduce(model_name, _inner(probe), reduction, recover)
        with torch.device('meta'):
            make_recover_layer(recover, model_name, _inner(probe))
        if recover != 'method' and getattr(_inner(probe), 'recover', None) is not None:
            model_kwargs['recover'] = False  # its own would idle
        infos, grid_stride = list(probe.feature_info.info), _grid_stride(model_name, probe)
        _check_frozen_stages(frozen_stages, out_indices, bool(grid_stride))
        finest = grid_stride or min(info['reduction'] for info in infos)
        made = tuple(STRIDES[i] for i in out_indices if grid_stride or STRIDES[i] < finest)  # by the pyramid
        levels = (len(infos) - 1,) if grid_stride else _find_levels(model_name, probe, out_indices, finest if made else None)
        self.body = timm.create_model(model_name, pretrained=pretrained, out_indices=levels, **model_kwargs)
        frozen = _modules_until_stage(self.model, infos, bool(grid_stride), frozen_stages)
        if reduction is not None:
            _reduce(model_name, self.model, reduction, recover)

        self.model_name = model_name
        self.out_indices = out_indices
        self.strides = tuple(STRIDES[i] for i in out_indices)
        self.recover_layer = make_recover_layer(recover, model_name, self.model)
        channels = self.body.feature_info.channels()
        self.pyramid = SimpleFeaturePyramid(channels[0], finest, made) if made else None
        own = channels[len(channels) - len(out_indices) + len(made):]  # a map that the pyramid alone needs stands in front
        self.out_channels = (*(self.pyramid.out_channels if made else ()), *own)
        self.in_chans = model_kwargs.get('in_chans', self.body.pretrained_cfg['input_size'][0])
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.multiple = 1 if getattr(self.model, 'any_size', False) else max(info['reduction'] for info in infos)

        norm = _output_norm(self.model, out_norm)
        for i, channels in zip(out_indices, self.out_channels, strict=True):
            self.add_module(f'norm{i}', norm(channels))
        if pretrained and hasattr(self.model, 'layouts'):
            self._load_output_norms()
        if with_cp:
            _enable_checkpointing(model_name, self.model)
        if checkpoint_path is not None:
            self.load(checkpoint_path)

        for module in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        # containers that go on behind the frozen part, or hold what a reduction method learns, still train
        self._frozen = [module for module in frozen if not any(p.requires_grad for p in module.parameters())]
        self.train()

    @property
    def model(self) -> nn.Module:
        """The timm model inside `body`, under the parameter names of the classifier."""
        return _inner(self.body)

    def load(self, source: str | Path | dict[str, Tensor]) -> LoadReport:
        """Load a file or state dict: any published layout for our families, a classifier or its features in timm's names for timm's.

        Raises ValueError, and changes nothing, if a weight is missing or has another shape.
        """
        return load_checkpoint(self, source)

    def _load_output_norms(self) -> None:
        """Load the whole of the weights again: of a published dense file timm's builder takes the model alone."""
        cfg = self.body.pretrained_cfg
        source = cfg.get('file') or (cfg.get('hf_hub_filename') and f'hf-hub:{cfg["hf_hub_id"]}/{cfg["hf_hub_filename"]}')
        if source:
            self.load(source)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_image(x, self.in_chans, like=precision_of(self))
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        if self.fixed_size and x.shape[-2:] != self.fixed_size:
            raise ValueError(f'{self.model_name} takes images of {self.fixed_size[0]}x{self.fixed_size[1]} alone, got {height}x{width}; '
                             'build it with another img_size, if it has that argument, or choose a model that takes any size')
        maps = self.body(x) if self.recover_layer is None else [recovered_map(self.recover_layer, self.model.forward_kept(x))]
        made = [] if self.pyramid is None else self.pyramid(maps[0], (height, width))
        own = maps[len(maps) - len(self.strides) + len(made):]
        if self.multiple > 1:
            own = [self._crop(m, stride, height, width) for m, stride in zip(own, self.strides[len(made):], strict=True)]
        maps = [*made, *own]
        return [getattr(self, f'norm{level}')(m).contiguous() for level, m in zip(self.out_indices, maps, strict=True)]

    def _crop(self, feature: Tensor, stride: int, height: int, width: int) -> Tensor:
        rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
        if feature.shape[2] < rows or feature.shape[3] < columns:
            raise ValueError(
                f'{self.model_name} gave a map of {feature.shape[2]}x{feature.shape[3]} where stride {stride} of {height}x{width} is '
                f'{rows}x{columns}: it does not keep the input grid and cannot serve as a dense backbone at this size')
        return feature[:, :, :rows, :columns]

    def train(self, mode: bool = True):
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
        for module in self._frozen:
            module.training = False
        return self


def _check_arguments(model_name, out_indices, pretrained, checkpoint_path, out_norm):
    if not out_indices or list(out_indices) != sorted(set(out_indices)) or not set(out_indices) <= {0, 1, 2, 3}:
        raise ValueError(f'out_indices are ascending levels 0 to 3 (strides 4, 8, 16, 32), got {show(out_indices)}')
    check_weights(pretrained, checkpoint_path)
    if out_norm not in (True, False, 'layer'):
        raise ValueError(f"out_norm is True, False or 'layer', got {show(out_norm)}")
    check_model_name(model_name)


def _check_frozen_stages(frozen_stages: int, out_indices: Sequence[int], columnar: bool) -> None:
    last = 4 if columnar else max(out_indices) + 1
    if not -1 <= frozen_stages <= last:
        raise ValueError(f'frozen_stages is -1 (none), 0 (the stem) or a number of stages up to {last}, the last that '
                         f'out_indices={tuple(out_indices)} needs, got {frozen_stages}')


def check_weights(pretrained: bool | str, checkpoint_path: str | os.PathLike | None) -> None:
    """Raise ValueError unless weights come from one place, which is there."""
    if isinstance(pretrained, str):  # as older configs have it
        raise ValueError(f'pretrained={show(pretrained)}: expected True or False; give a file as checkpoint_path')
    if checkpoint_path is not None and pretrained:
        raise ValueError(f'give either pretrained=True or checkpoint_path, got both ({checkpoint_path})')
    if checkpoint_path is not None and not str(checkpoint_path).startswith(('hf-hub:', 'hf_hub:')) and not Path(checkpoint_path).is_file():
        raise ValueError(f'checkpoint_path {str(checkpoint_path)!r} is not a file')


def check_model_name(model_name: str) -> None:
    """Raise ValueError unless timm knows a model of that name, with or without a tag, or it names a place where one is."""
    name = model_name.split('.')[0]
    if ':' not in name and not timm.is_model(name):
        close = get_close_matches(name[:100], timm.list_models(), n=3)
        raise ValueError(f'model_name={show(model_name)}: unknown model' + (f'; did you mean {", ".join(close)}?' if close else
                                                                            '; see timm.list_models()'))


def _probe(model_name: str, model_kwargs: dict) -> tuple[nn.Module, dict, tuple[int, int] | None]:
    """Build the feature model without memory, for its facts, and find the arguments that build it; and the only size it takes, if so.

    timm answers an argument that a model does not have with a TypeError. Preferred are its getter wrapper (it keeps parameter names and
    drops what lies behind the last level) and the option that frees a model from its fixed input size.
    """
    def build(**kwargs):
        kwargs = {**kwargs, **model_kwargs, 'features_only': True}
        with torch.device('meta'):
            return timm.create_model(model_name, **kwargs), kwargs

    try:
        body, kwargs = build(feature_cls='getter')
    except TypeError:
        return *build(), None
    if not body.pretrained_cfg.get('fixed_input_size'):
        return body, kwargs, None
    for option in ('strict_img_size', False), ('dynamic_img_size', True):
        try:
            return *build(feature_cls='getter', **dict([option])), None
        except TypeError:
            continue
    in_chans, *size = body.pretrained_cfg['input_size']
    size = to_2tuple(kwargs.get('img_size') or size)
    image = torch.empty(1, kwargs.get('in_chans', in_chans), *size, device='meta')
    try:  # some that are said to have a fixed size take others
        larger = body(image.repeat(1, 1, 2, 3))
    except (AssertionError, RuntimeError):
        return body, kwargs, size
    if larger[-1].shape == body(image)[-1].shape:
        raise ValueError(f'{model_name} rescales each image to {size[0]}x{size[1]} inside, so that its maps do not grow with the image: it '
                         'classifies, and cannot serve as a dense backbone; choose a model that takes any size')
    return body, kwargs, None


def _reduce(model_name: str, model: nn.Module, reduction: dict, recover: str) -> None:
    if 'method' not in reduction:
        raise ValueError(f"reduction={show(reduction)}: expected a dict with the name of a method, such as dict(method='expedite')")
    try:
        reduce_tokens(model, **reduction)
    except ValueError as e:
        raise ValueError(f'reduction={show(reduction)} of {model_name}: {e}') from None
    if not model.reduction.full_grid and recover == 'method':
        raise ValueError(f'reduction={show(reduction)} leaves the maps at a coarser grid, and the pyramid is made of the full one; choose '
                         "options that restore it, or recover='nearest' or 'learnt'")


def _grid_stride(model_name: str, body: nn.Module) -> int | None:
    """The stride of a columnar model's maps, None if it is hierarchical."""
    strides = {info['reduction'] for info in body.feature_info.info}
    if len(strides) > 1:
        return None
    stride, = strides
    if stride & (stride - 1):
        raise ValueError(f'{model_name} has patches of {stride} pixels, levels of strides 4, 8, 16, 32 need a power of two; pass '
                         'patch_size=16, to which timm resamples the patch embedding of a ViT')
    return stride


def _find_levels(model_name: str, body: nn.Module, out_indices: Sequence[int], finest: int | None) -> tuple[int, ...]:
    """Positions of the wanted strides in the model's own list of feature maps; of several with one stride, the last.

    finest: the stride of the map in place of levels that are finer than it, None if there are none.
    """
    by_stride = {info['reduction']: position for position, info in enumerate(body.feature_info.info)}
    wanted = sorted({max(STRIDES[i], finest or 0) for i in out_indices})
    missing = [stride for stride in wanted if stride not in by_stride or stride not in STRIDES]
    if missing:
        raise ValueError(
            f'{model_name} has feature maps at strides {sorted(by_stride)}, out_indices={tuple(out_indices)} asks for {missing} as well; '
            'choose levels that exist or a hierarchical model')
    return tuple(by_stride[stride] for stride in wanted)


def _inner(body: nn.Module) -> nn.Module:
    body = unwrapped(body)
    return unwrapped(body.model) if isinstance(body, FeatureGetterNet) else body


def _output_norm(model: nn.Module, out_norm: bool | str) -> Callable[[int], nn.Module]:
    if out_norm == 'layer':
        return LayerNorm2d
    if not out_norm:
        return lambda channels: nn.Identity()
    if kind := getattr(model, 'dense_norm', None):
        return kind
    eps = getattr(model, 'dense_norm_eps', None)
    return partial(LayerNorm2d, eps=eps) if eps else lambda channels: nn.Identity()


def _enable_checkpointing(model_name: str, model: nn.Module) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as e:  # timm asserts where a model cannot
        raise ValueError(f'{model_name} has no gradient checkpointing; leave with_cp=False') from e


def _modules_until_stage(model: nn.Module, levels: list[dict], columnar: bool, stages: int) -> list[nn.Module]:
    """The stem and the first `stages` stages, as modules to be taken without their children.

    Modules are registered in the order of use (timm's feature wrappers rely on it too), so this is all that comes before the end of the
    stage's last module. Containers that go on behind it count as well, since what they own directly (a position embedding) acts first.
    """
    if stages < 0:
        return []
    names = [name for name, _ in model.named_modules()]
    if columnar:
        path = levels[-(-len(levels) * max(stages, 1) // 4) - 1]['module']
    else:
        paths, stride = {info['reduction']: info['module'] for info in levels}, STRIDES[max(stages, 1) - 1]
        if stride < min(paths):  # within the stem
            stages, stride = 0, min(paths)
        if stride not in paths:
            raise ValueError(f'frozen_stages={stages} ends at stride {stride}, the stages of this model are at {sorted(paths)}')
        path = paths[stride]
    if stages == 0:
        end = names.index(path.split('.')[0])
    else:
        end = max(i for i, name in enumerate(names) if f'{name}.'.startswith(f'{path}.')) + 1
    return [module for _, module in list(model.named_modules())[:end]]
