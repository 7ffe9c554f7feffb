"""What timm calls: `build_model` for the entry points, and the hook for local files."""
from collections.abc import Sequence

import numpy as np
import torch.nn as nn
from timm.models import build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from timm.models._features_fx import FeatureGraphNet

from ..arguments import check_types, show
from ..layers import check_indices
from ..weights.files import StateDict, unwrap
from ..weights.layout import BESIDE_MODEL, Layout, convert, keep_counters, strip_prefixes
from ..weights.load import load_checkpoint


class PublishedWeights:
    """Mixin of models whose class says how published files are laid out; the hook that timm calls for files."""
    layouts: tuple[Layout, ...] = ()

    def load_pretrained(self, path: str) -> None:
        load_checkpoint(self, path, reset_head=self.num_classes != self.pretrained_cfg['num_classes'])

    def __prepare_scriptable__(self):
        """torch.jit.script calls this of every module, first of all."""
        raise ValueError(f'{type(self).__name__} cannot be scripted: torch.jit.script is deprecated; use torch.compile, torch.export or '
                         'torch.jit.trace.')


def checkpoint_filter_fn(state: StateDict, model: nn.Module) -> StateDict:
    """Any layout of the model's family to ours, in the form that timm's builder wants where it reads by itself (`hf-hub:` names)."""
    conversion, own = convert(strip_prefixes(unwrap(state), model), model), model.state_dict()
    state = {name: value for name, value in conversion.state.items() if not BESIDE_MODEL.match(name)}
    return keep_counters({**{name: own[name] for name in conversion.new}, **state}, model)


def _wrapper_name(feature_cls: str | type, columnar: bool) -> str | None:
    """What timm calls a feature wrapper, None for one that is not timm's. Raises ValueError on those that cannot take such models.

    Hooks and graphs find the outputs of modules: stages give maps, channels last; blocks of a columnar model give tokens, some of them
    more than one set. The wrappers that rebuild the model as a list of modules know of no `forward` but theirs.
    """
    wrappers = dict(getter=FeatureGetterNet, hook=FeatureHookNet, fx=FeatureGraphNet, dict=FeatureDictNet)
    if isinstance(feature_cls, str):
        name = feature_cls.lower()
    else:
        name = next((name for name, wrapper in wrappers.items() if issubclass(feature_cls, wrapper)), None)
    choices = ('getter', None) if columnar else ('getter', 'hook', 'fx', None)
    if name not in choices:
        raise ValueError(f"feature_cls={show(feature_cls)}: expected 'getter', which is the default" + ('.' if columnar else
                         ", or 'hook' or 'fx', whose maps are channels last."))
    return name


@check_types
def build_model(
        model_cls: type[nn.Module],
        variant: str,
        pretrained: bool,
        *,
        features_only: bool = False,
        feature_cls: str | type = 'getter',
        out_indices: int | Sequence[int] | None = None,
        pretrained_cfg_overlay: dict | None = None,
        **kwargs,
) -> nn.Module:
    """timm's `build_model_with_cfg` with our conversion, features by `forward_intermediates`, and clear errors.

    A model class may name options that it has when built for its features alone, as `features_options`.

    Raises ValueError if weights are asked for that no program can download, features that the model does not have, or another stride.
    """
    if (stride := kwargs.pop('output_stride', None)) is not None:  # as DeepLab-like heads ask of convolutions, which may be dilated instead
        raise ValueError(
            f'output_stride={show(stride)}: expected none, and a head over maps of several strides, such as FPN, UPerNet '
            f'or Unet. {variant} has its own strides: a stage of attention that keeps its grid would see other places and more tokens than '
            'it was made for.')
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        name = f'{variant}.{cfg.tag}' if cfg.tag else variant
        where = f'They are published at {cfg.origin_url} ({", ".join(cfg.notes or ())})' if cfg.origin_url else 'None were published'
        raise ValueError(
            f'No program can download weights for {name}. {where}. With a local file: '
            f"timm.create_model('{variant}', pretrained=True, pretrained_cfg_overlay=dict(file='FILE')), "
            'or vitzoo.load_checkpoint(model, FILE).')
    if not cfg.state_dict:  # files through our one door
        if cfg.file:
            overlay['custom_load'] = True
        elif cfg.hf_hub_id and cfg.hf_hub_filename:
            overlay['custom_load'] = 'hf'
    # timm reads sizes and channels out of these as well, and knows no numbers of numpy's
    kwargs = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}
    if features_only:
        kwargs = {**getattr(model_cls, 'features_options', {}), **kwargs, 'features_only': True}
    feature_cfg = dict(feature_cls=feature_cls)
    if _wrapper_name(feature_cls, model_cls.columnar) in ('hook', 'fx'):
        feature_cfg['output_fmt'] = 'NHWC'

    def make(**options) -> nn.Module:
        model = model_cls(**options)
        if features_only:  # the model knows which maps there are, before timm's wrapper asks for some
            levels = model.feature_indices if out_indices is None else out_indices
            feature_cfg['out_indices'] = check_indices('out_indices', levels, len(model.feature_info))
        return model

    return build_model_with_cfg(
        make, variant, pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **kwargs,
    )
