"""Published names and layouts of weights, as data, and their conversion into ours."""
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from .files import StateDict

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
