"""Published weights: read files safely, bring published names and layouts into ours, build models with timm's builder."""
import argparse
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn as nn
from timm.models import build_model_with_cfg, load_pretrained
from timm.models._builder import resolve_pretrained_cfg

StateDict = dict[str, torch.Tensor]

# What published training scripts stored beside the weights. Both load as inert containers.
INERT_GLOBALS = [argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode')]

# What a DenseBackbone has beside its model: output norms, named as published dense backbones name theirs, and a columnar model's pyramid.
BESIDE_MODEL = re.compile(r'^(norm\d|pyramid)\.')

# Families whose names or files are easily confused: how to call them, and a pattern that some key of each published file has.
KNOWN_LAYOUTS = (
    ('a super-token checkpoint: use svit_small, svit_base or svit_large', r'\.stoken_refine\.|\.attn\.unfold\.weights$'),
    ('a semantic-token checkpoint (STViT-R-Swin): use stvit_small or stvit_base',
     r'^layers\.2\.blocks\.1\.(layer_scale_1|attn\.kv\.weight)$'),
    ('a DaViT checkpoint: use vz_davit_tiny, vz_davit_small or vz_davit_base', r'^(main_blocks|stages)\.\d\.(\w+\.)*cpe(1|\.0)\.proj\.'),
    ('the image tower of Florence-2: use vz_davit_base_fl', r'\.(window|channel)_attn\.fn\.'),
    ('a BiFormer checkpoint: use biformer_tiny, biformer_small or biformer_base', r'^stages\.\d\.\d+\.attn\.qkv\.qkv\.'),
    ('a BiFormer-STL checkpoint: use biformer_stl', r'^stages\.\d\.blocks\.\d+\.attn\.qkv\.qkv\.'),
    ('a checkpoint of the later BiFormer-STL: use biformer_stl_nchw', r'\.attn\.qkv_linear\.'),
    ('a BiFormer checkpoint: use biformer_tiny, biformer_small, biformer_base or biformer_stl', r'\.attn\.wo\.'),
    ('a Swin checkpoint: use timm\'s swin_*', r'^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$'),
)


@dataclass
class Conversion:
    """A state dict in our names, and what became of the published ones. new: our names that files of this layout do not have."""
    state: StateDict
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A published checkpoint layout as data.

    marker: pattern that some key of the published layout has and none of ours.
    rules: (pattern, replacement) applied in turn to each name; a replacement of None drops the entry.
    values: (pattern of our name, function (tensor, model, our name) -> tensor), for values that are laid out differently.
    constants: (pattern of a published name, value) of entries that were never trained; they are dropped, and must have this value.
    new: pattern of our names that files of this layout do not have (another model's weights as a start); they keep their initial values.
    absent: pattern that no key has, where layouts share a marker.
    """
    marker: str
    rules: tuple[tuple[str, str | None], ...]
    values: tuple[tuple[str, Callable[[torch.Tensor, nn.Module, str], torch.Tensor]], ...] = ()
    constants: tuple[tuple[str, torch.Tensor], ...] = ()
    new: str | None = None
    absent: str | None = None

    def matches(self, state: StateDict) -> bool:
        found = any(re.search(self.marker, name) for name in state)
        return found and not (self.absent and any(re.search(self.absent, name) for name in state))

    def rename(self, name: str) -> str | None:
        for pattern, replacement in self.rules:
            if replacement is None and re.search(pattern, name):
                return None
            name = re.sub(pattern, replacement or '', name)
        return name

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        """Published names and shapes to ours. Raises ValueError if constants were changed."""
        result, own = Conversion({}), model.state_dict()
        for name, value in state.items():
            constant = next((c for pattern, c in self.constants if re.search(pattern, name)), None)
            if constant is not None:
                if not torch.equal(value.cpu().to(constant), constant):
                    raise ValueError(f'{name} is a constant in the published code, but has another value here: this is another model.')
                result.dropped.append(name)
                continue
            new = self.rename(name)
            if new is None:
                result.dropped.append(name)
                continue
            if new in own and value.shape != own[new].shape and value.squeeze().shape == own[new].squeeze().shape:
                value = value.reshape(own[new].shape)  # 1x1 convolutions are linear layers here, (1, C, 1, 1) scales vectors
            if new in own and value.shape == own[new].shape:
                for pattern, change in self.values:
                    if re.search(pattern, new):
                        value = change(value, model, new)
            result.state[new] = value
            if new != name:
                result.renamed[name] = new
        if self.new:
            result.new = [name for name in own if re.search(self.new, name) and name not in result.state]
        return result


def convert(state: StateDict, model: nn.Module) -> Conversion:
    """A state dict in any layout published for the model's family to ours; our own passes unchanged.

    Raises ValueError on another family's file, and on one whose constants were changed.
    """
    layout = next((layout for layout in model.layouts if layout.matches(state)), None)
    if layout is not None:
        return layout.convert(state, model)
    for what, pattern in KNOWN_LAYOUTS:
        if any(re.search(pattern, name) for name in state):
            raise ValueError(f'This is {what}. {type(model).__name__} cannot load it.')
    return Conversion(dict(state))


def read_checkpoint(path: str | os.PathLike, use_ema: bool = False) -> StateDict:
    """The weights in a file (.safetensors, or a pickle read with weights_only), unwrapped from what training scripts put around them.

    Raises ValueError if the file is missing, truncated, holds anything but data, or has no weights of the kind asked for.
    """
    return unwrap(read_file(path), use_ema, os.fspath(path))


def read_file(path: str | os.PathLike) -> object:
    """All that is in a checkpoint file. Raises ValueError if it is missing, truncated, or holds anything but data."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f'{path}: no such checkpoint file.')
    try:
        if path.endswith('.safetensors'):
            from safetensors.torch import load_file
            return load_file(path)
        with torch.serialization.safe_globals(INERT_GLOBALS):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        raise ValueError(f'{path} was refused: it holds more than weights, or is no checkpoint ({_first_line(e)}). '
                         'Nothing in it was executed. Convert it in a place where it is trusted to a file of tensors alone.') from e
    except Exception as e:  # whatever zip, pickle or header reading stumbles over in a damaged file
        raise ValueError(f'{path} could not be read, it may be truncated ({type(e).__name__}: {_first_line(e)}).') from e


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def unwrap(content: object, use_ema: bool = False, name: str = 'The checkpoint') -> StateDict:
    """The state dict inside {'model': ...}, {'state_dict': ...}, {'model_ema': ...}; prefixes stay.

    mmengine's EMAHook saves the averaged weights as 'state_dict', which is then the answer whatever `use_ema`, and the trained ones as
    'ema_state_dict'.
    """
    keys = ('model_ema', 'state_dict_ema', 'ema_state_dict') if use_ema else ('model', 'state_dict')
    if use_ema and isinstance(content, dict) and {'state_dict', 'ema_state_dict'} <= content.keys():
        keys = ('state_dict',)
    if isinstance(content, dict):
        inner = next((content[k] for k in keys if isinstance(content.get(k), dict)), None)
        if inner is not None:
            content = inner.get('state_dict', inner) if isinstance(inner.get('state_dict'), dict) else inner
        elif use_ema:
            raise ValueError(f'{name} holds no averaged weights (none of {", ".join(keys)}); its keys start with '
                             f'{list(content)[:5]}. Load it with use_ema=False.')
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        values = content.values() if isinstance(content, dict) else [content]
        kind = ', '.join(sorted({type(v).__name__ for v in values})) or 'nothing'
        raise ValueError(f'{name}: expected a state dict (names to tensors), bare or under "model" or "state_dict"; found {kind}.')
    return dict(content)


def inner_names(state: StateDict) -> tuple[dict[str, str], dict[str, str]]:
    """Names without what data parallelism and wrappers put before them, each with its name in `state`.

    Returns (those of the model, of a whole detector those of its backbone alone; those of the detector's other parts).
    """
    inside, others = {re.sub(r'^(module\.)+', '', name): name for name in state}, {}
    if any(name.startswith('backbone.') for name in inside):
        others = {name: old for name, old in inside.items() if not name.startswith('backbone.')}
        inside = {name.removeprefix('backbone.'): old for name, old in inside.items() if name.startswith('backbone.')}
    return {re.sub(r'^(body\.)?(model\.)?', '', name): old for name, old in inside.items()}, others


def strip_prefixes(state: StateDict) -> StateDict:
    """The model in a state dict, of a whole detector its backbone, under names without prefixes."""
    return {name: state[old] for name, old in inner_names(state)[0].items()}


def keep_counters(state: StateDict, model: nn.Module) -> StateDict:
    """Batch counters that a file lacks stay the model's own: nothing that is computed depends on them."""
    own = {name: value for name, value in model.state_dict().items() if name.endswith('.num_batches_tracked')}
    return {**own, **state}


class PublishedWeights:
    """Mixin of models whose class says how published files are laid out; the hook that timm calls for local files."""
    layouts: tuple[Layout, ...] = ()

    def load_pretrained(self, path: str) -> None:
        cfg = {**self.pretrained_cfg, 'state_dict': read_checkpoint(path), 'custom_load': False, 'source': ''}
        try:
            load_pretrained(self, cfg, self.num_classes, self.in_chans, checkpoint_filter_fn)
        except RuntimeError as e:
            reasons = str(e).splitlines()[1:]
            raise ValueError(f'{path} does not fit {cfg["architecture"]} ({len(reasons)} differences): {reasons[0].strip()[:160]}') from e


def checkpoint_filter_fn(state: StateDict, model: nn.Module) -> StateDict:
    """Any published layout of the model's family to ours, in the form that timm's builder wants."""
    conversion, own = convert(strip_prefixes(state), model), model.state_dict()
    state = {name: value for name, value in conversion.state.items() if not BESIDE_MODEL.match(name)}
    return keep_counters({**{name: own[name] for name in conversion.new}, **state}, model)


def build_model(model_cls: type[nn.Module], variant: str, pretrained: bool, **kwargs) -> nn.Module:
    """timm's `build_model_with_cfg` with our conversion, features by `forward_intermediates`, and clear errors about weights.

    A model class may name options that it has when built for its features alone, as `features_options`.

    Raises ValueError if weights are asked for that no program can download.
    """
    if kwargs.get('features_only'):
        kwargs = {**getattr(model_cls, 'features_options', {}), **kwargs}
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        name = f'{variant}.{cfg.tag}' if cfg.tag else variant
        where = f'They are published at {cfg.origin_url} ({", ".join(cfg.notes or ())})' if cfg.origin_url else 'None were published'
        raise ValueError(
            f'No program can download weights for {name}. {where}. With a local file: '
            f"timm.create_model('{variant}', pretrained=True, pretrained_cfg_overlay=dict(file='FILE')), "
            'or vitzoo.load_checkpoint(model, FILE).')
    if cfg.file and not cfg.state_dict:
        overlay['custom_load'] = True  # our reader: safe, and the weights rather than their average
    return build_model_with_cfg(
        model_cls, variant, pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{'feature_cfg': dict(out_indices=(0, 1, 2, 3), feature_cls='getter'), **kwargs},
    )
