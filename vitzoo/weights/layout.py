"""Published names and layouts of weights, as data, and their conversion into ours."""
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import timm
import torch
import torch.nn as nn
from timm.models import model_entrypoint

from .adapt import adapt_positions
from .files import StateDict
from .names import clean_names, own_state, unique
from .words import shown

# What a DenseBackbone has beside its model: output norms, named as published dense backbones name theirs, and a columnar model's
# pyramid and recover layer.
BESIDE_MODEL = re.compile(r'^(norm\d|pyramid|recover_layer)\.')


@dataclass
class Conversion:
    """A state dict in our names, and what became of the published ones.

    new: our names that files of this layout do not have. adapted: our names of position tables that were resampled.
    """
    state: StateDict
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A checkpoint layout as data: published names, or our own for another form of the model.

    name: what an error calls such a file when it is given to another model ('a DaViT checkpoint: use vz_davit_tiny, ...').
    marker: pattern that some key of the layout has.
    absent: pattern that none of its keys has, where layouts share a marker.
    own_marker: pattern that some of our names of the same model has, which are called by the same name.
    suits: (model of the class) -> whether the layout is of its form, where the class has several.
    ours: its names are our own but for a few, by which the marker tells it (another form of the model, or a plain ViT to start from).
        Files in our names are searched for such layouts alone.
    rules: (pattern, replacement) applied in turn to each name; a replacement of None drops the entry.
    values: (pattern of our name, function (tensor, model, our name) -> tensor), for values that are laid out differently.
    constants: (pattern of a published name, value) of entries that were never trained; they are dropped, and must have this value.
    new: pattern of our names that files of this layout do not have (another model's weights as a start); they keep their initial values.
    """
    name: str
    marker: str
    absent: str | None = None
    own_marker: str | None = None
    suits: Callable[[nn.Module], bool] = lambda model: True
    ours: bool = False
    rules: tuple[tuple[str, str | None], ...] = ()
    values: tuple[tuple[str, Callable[[torch.Tensor, nn.Module, str], torch.Tensor]], ...] = ()
    constants: tuple[tuple[str, torch.Tensor], ...] = ()
    new: str | None = None

    def matches(self, names: Iterable[str]) -> bool:
        return _some_match(self.marker, names) and not (self.absent and _some_match(self.absent, names))

    def describes(self, names: Iterable[str]) -> bool:
        """Whether `name` is right for a file with these names, published ones or ours."""
        return self.matches(names) or bool(self.own_marker and _some_match(self.own_marker, names))

    def rename(self, name: str) -> str | None:
        for pattern, replacement in self.rules:
            if replacement is None and re.search(pattern, name):
                return None
            name = re.sub(pattern, replacement or '', name)
        return name

    def convert(self, state: StateDict, model: nn.Module) -> Conversion:
        """Published names and shapes to ours. Raises ValueError if constants were changed, or two names are for one entry."""
        result, own = Conversion({}), own_state(model)
        for name, value in state.items():
            constant = next((c for pattern, c in self.constants if re.search(pattern, name)), None)
            if constant is not None:
                if value.shape != constant.shape or not torch.equal(value.cpu().to(constant), constant):
                    raise ValueError(f'{shown(name)} is a constant in the published code, but has another value here: this is another '
                                     'model.')
                result.dropped.append(name)
                continue
            new = self.rename(name)
            if new is None:
                result.dropped.append(name)
                continue
            if new in result.state:
                first = next(old for old in state if self.rename(old) == new)
                raise ValueError(f'{shown(first)} and {shown(name)} are both {shown(new)} of the model: leave one out.')
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


# Files of others that are easily taken for one of ours.
FOREIGN = (Layout("a Swin checkpoint: use timm's swin_*", marker=r'^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$'),)


def _some_match(pattern: str, names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def known_layouts() -> list[Layout]:
    """The layouts of all registered families, by which a file of one given to another is recognised, and those of others."""
    modules = sorted({model_entrypoint(name).__module__ for name in timm.list_models()})
    classes = [x for module in modules for x in vars(sys.modules[module]).values() if isinstance(x, type) and x.__module__ == module]
    return [layout for cls in classes for layout in getattr(cls, 'layouts', ())] + list(FOREIGN)


def has_own_names(names: Iterable[str], model: nn.Module) -> bool:
    """Whether names are the model's own, a few apart: of all that it has, or of all that the file has (one may be a part of the other)."""
    names, own = [name for name in names if not BESIDE_MODEL.match(name)], own_state(model)
    return sum(name in own or _flat(name) in own for name in names) >= 0.9 * min(len(names), len(own))


def _flat(name: str) -> str:
    """timm's feature lists call the children of `stages` stages_0, stages_1."""
    return name.replace('.', '_', 1)


def convert(state: StateDict, model: nn.Module) -> Conversion:
    """A state dict in any layout published for the model's family to ours; the model's own names, and timm's models, as they are.

    Positions made for another image size are resampled.

    Raises ValueError on another family's file, on one whose constants were changed, and on two names for one entry.
    """
    conversion = _convert_names(state, model)
    conversion.adapted = adapt_positions(conversion.state, model)
    return conversion


def _convert_names(state: StateDict, model: nn.Module) -> Conversion:
    layouts, is_own = getattr(model, 'layouts', ()), has_own_names(state, model)
    for layout in layouts:
        if (layout.ours or not is_own) and layout.suits(model) and layout.matches(state):
            return layout.convert(state, model)
    if not is_own:
        for layout in known_layouts():
            if layout.describes(state) and not (layout in layouts and (layout.ours or layout.suits(model))):
                raise ValueError(f'This is {layout.name}. {type(model).__name__} cannot load it.')
    own = own_state(model)
    names = unique(((_flat(name) if name not in own and _flat(name) in own else name, name) for name in state), 'The checkpoint')
    return Conversion({new: state[name] for new, name in names.items()}, {name: new for new, name in names.items() if new != name})


def inner_names(names: Iterable[str], model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Names without what data parallelism, compilation and wrappers put before them, each with its name in the file.

    Returns (those of `model`, of a whole detector those of its backbone alone; those of the detector's other parts).
    """
    inside, others = clean_names(names, 'The checkpoint'), {}
    if any(name.startswith('backbone.') for name in inside):
        others = {name: old for name, old in inside.items() if not name.startswith('backbone.')}
        inside = {name.removeprefix('backbone.'): old for name, old in inside.items() if name.startswith('backbone.')}
    if not has_own_names(inside, model):  # timm has models with a `body`
        inside = unique(((re.sub(r'^(body\.)?(model\.)?', '', name), old) for name, old in inside.items()), 'The checkpoint')
    return inside, others


def strip_prefixes(state: StateDict, model: nn.Module) -> StateDict:
    """The part for `model` of a state dict, of a whole detector its backbone, under names without prefixes."""
    return {name: state[old] for name, old in inner_names(state, model)[0].items()}


def keep_counters(state: StateDict, model: nn.Module) -> StateDict:
    """Batch counters that a file lacks stay the model's own: nothing that is computed depends on them."""
    own = {name: value for name, value in own_state(model).items() if name.endswith('.num_batches_tracked')}
    return {**own, **state}
