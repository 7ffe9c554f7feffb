"""`load_checkpoint`: a file into any model, ours or timm's, all or nothing, with a report of what became of every entry."""
import os
import re
from dataclasses import asdict, dataclass, field

import timm
import torch
import torch.nn as nn
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import adapt_input_conv

from .files import StateDict, local_file, read_checkpoint, unwrap
from .layout import BESIDE_MODEL, convert, inner_names, keep_counters, strip_prefixes, without_wrappers


@dataclass
class LoadReport:
    """What became of a checkpoint.

    loaded: entries of the model that came from the file. renamed: published name to ours. dropped: entries of the file that belong to
    another published form and have no place in the model. new: entries of the model that the file does not have and that keep their
    initial values. adapted: entries of the model whose values were changed for its number of image channels. num_others: how many of the
    dropped belong to other modules than the model (the neck of a detector).
    """
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    num_others: int = 0

    def __str__(self) -> str:
        return (f'{len(self.loaded)} loaded ({len(self.renamed)} renamed), {len(self.dropped)} dropped, {len(self.new)} new'
                + (f', {len(self.adapted)} adapted' if self.adapted else ''))

    def to_dict(self) -> dict:
        return asdict(self)


def load_checkpoint(
        model: nn.Module,
        source: str | os.PathLike | dict,
        *,
        strict: bool = True,
        use_ema: bool = False,
        reset_head: bool = False,
        prefix: str | None = None,
) -> LoadReport:
    """Load published or own weights into a model.

    Args:
        model: one of our models, or any that `timm.create_model` built (which takes files in its own names), its `features_only` wrapper,
            a `DenseBackbone` around it, or a detector or segmentor with such a `backbone`. The latter takes a whole detector's file whole:
            ours, or one of MMDetection 2 and 3 or MMSegmentation 0.x and 1.x, which name necks and heads alike. Parts that it has not
            (an RPN, an auxiliary head) are dropped. Of a classifier or a backbone it gets the backbone.
        source: a path (`.safetensors`, or a pickle, which is read with `weights_only`), `hf-hub:ORG/REPO[/FILE]`, or a state dict.
        strict: refuse entries that are missing, unexpected or of another shape. Without it they are listed as new and dropped.
        use_ema: take the averaged weights of a training checkpoint.
        reset_head: leave the classifier as it is where the file has another number of classes, or none; of a detector's heads the layers
            that have another number of outputs.
        prefix: take of the file what is below this name alone ('student'). Without it a detector's file is recognised by its 'backbone.'.

    Weights of a first convolution are adapted to the model's number of image channels by timm's rule.

    Returns:
        What was loaded, renamed, dropped, left new and adapted.

    Raises:
        ValueError: the source cannot be read, belongs to another family, or does not fit. The model is then unchanged.
    """
    if isinstance(source, (str, os.PathLike)):
        state, name = read_checkpoint(local_file(source), use_ema), str(source)
    else:
        state, name = unwrap(source, use_ema), 'The state dict'
    left_out = []
    if prefix is not None:
        state, left_out = _take_prefix(state, prefix, name)
    fit = _fit_model if hasattr(model, 'pretrained_cfg') or not hasattr(model, 'backbone') else _fit_detector
    fitting, report = fit(model, state, name, strict, reset_head)
    report.dropped += left_out
    report.num_others += len(left_out)
    model.load_state_dict(fitting, strict=False)
    report.loaded = list(fitting)
    return report


def rename_published(wrapper: nn.Module, state: StateDict, prefix: str = '') -> None:
    """Put our names in the place of published ones, in `state` itself: for loaders that are not ours and ask each module for its entries.

    Args:
        wrapper: a model of ours, or a `DenseBackbone` around it; of others nothing changes.
        state: its entries are those below `prefix`.

    Raises:
        ValueError: they are another family's.
    """
    model = _find_model(wrapper)
    if not hasattr(model, 'layouts'):
        return
    published = {name: value for name, value in state.items() if name.startswith(prefix)}
    conversion = convert(strip_prefixes({name.removeprefix(prefix): value for name, value in published.items()}, model), model)
    if not conversion.renamed and not conversion.dropped:
        return
    path = _path(wrapper, model)
    for name in published:
        del state[name]
    for name, value in conversion.state.items():
        state[prefix + ('' if BESIDE_MODEL.match(name) else path) + name] = value


def _take_prefix(state: StateDict, prefix: str, source: str) -> tuple[StateDict, list[str]]:
    """The entries below `prefix`, without it, and the names of the rest."""
    prefix, names = prefix.rstrip('.') + '.', {name: without_wrappers(name) for name in state}
    part = {clean.removeprefix(prefix): state[name] for name, clean in names.items() if clean.startswith(prefix)}
    if not part:
        raise ValueError(f'{source} holds nothing under prefix {prefix!r}; its keys start with {list(state)[:3]}')
    return part, [name for name, clean in names.items() if not clean.startswith(prefix)]


# ---- what of a file goes where; names of `state` are those of the file, names of the answers those of the model that was given

def _fit_detector(model: nn.Module, state: StateDict, source: str, strict: bool, reset_head: bool) -> tuple[StateDict, LoadReport]:
    """A file for a whole detector or segmentor, or for its backbone."""
    own = model.state_dict()
    if set(state) == set(own):  # its own file, whoever's its backbone is
        return _fit_parts(state, model, own, source, strict, reset_head)
    fitting, report, others = _fit_backbone(model.backbone, state, source, strict, reset_head)
    fitting = {f'backbone.{name}': value for name, value in fitting.items()}
    report.renamed = {name: f'backbone.{new}' for name, new in report.renamed.items()}
    report.new = [f'backbone.{name}' for name in report.new]
    report.adapted = [f'backbone.{name}' for name in report.adapted]
    if all(name.startswith('head.') for name in others):  # no more than a classifier
        report.dropped += others.values()
        return fitting, report
    own = {name: value for name, value in own.items() if not name.startswith('backbone.')}
    parts, about = _fit_parts({name: state[old] for name, old in others.items()}, model, own, source, strict, reset_head)
    report.dropped += [others[name] for name in about.dropped]
    report.new += about.new
    return {**fitting, **parts}, report


def _fit_model(wrapper: nn.Module, state: StateDict, source: str, strict: bool, reset_head: bool) -> tuple[StateDict, LoadReport]:
    """A file for a model or a wrapper of one."""
    fitting, report, others = _fit_backbone(wrapper, state, source, strict, reset_head)
    report.dropped += others.values()
    report.num_others = len(others)
    return fitting, report


def _fit_backbone(
        wrapper: nn.Module, state: StateDict, source: str, strict: bool, reset_head: bool,
) -> tuple[StateDict, LoadReport, dict[str, str]]:
    """The part of a file that is for one model; the rest, if it is a detector's: name without prefixes -> name in the file."""
    model = _find_model(wrapper)
    inside, others = inner_names(state, model)
    conversion = convert({name: state[old] for name, old in inside.items()}, model)
    own, beside = model.state_dict(), _beside(wrapper, model)
    fit = _Fit(keep_counters(conversion.state, model), {**own, **beside}, new=list(conversion.new))

    fit.drop([name for name in fit.state if BESIDE_MODEL.match(name) and name not in fit.own])
    fit.new += [name for name in beside if name not in fit.state]
    adapted = _adapt_input(fit, model)
    head = _head(model)
    _settle_head(fit, head, source, reset_head)
    _drop_absent_parts(fit, model, wrapper)
    if strict:
        missing, architecture = fit.missing, model.pretrained_cfg['architecture']
        advice = 'Pass reset_head=True to start with a new classifier.' if missing and set(missing) == set(head) else ''
        _refuse_names(missing, fit.unexpected, architecture, source, advice)
        _refuse_shapes(fit.misshaped, fit.state, fit.own, architecture, source)
    fit.leave_out_the_rest()

    path = _path(wrapper, model)
    full = {name: name if name in beside else path + name for name in fit.own}
    published = {ours: name for name, ours in conversion.renamed.items()}
    dropped = [published.get(name, name) for name in fit.dropped] + conversion.dropped
    return {full[name]: value for name, value in fit.state.items()}, LoadReport(
        renamed={inside[name]: full[ours] for name, ours in conversion.renamed.items() if ours in fit.state},
        dropped=[inside.get(name, name) for name in dropped],  # a layout may name a part of an entry
        new=[full[name] for name in fit.new],
        adapted=[full[name] for name in adapted]), others


@dataclass
class _Fit:
    """Entries of a file on their way into a model, `own` being the model's, all by the model's names."""
    state: StateDict
    own: StateDict
    new: list[str]
    dropped: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        return [name for name in self.own if name not in self.state and name not in self.new]

    @property
    def unexpected(self) -> list[str]:
        return [name for name in self.state if name not in self.own]

    @property
    def misshaped(self) -> list[str]:
        return [name for name in self.state if name in self.own and self.state[name].shape != self.own[name].shape]

    def drop(self, names: list[str]) -> None:
        self.dropped += names
        self.state = {name: value for name, value in self.state.items() if name not in names}

    def leave_out_the_rest(self) -> None:
        """What does not fit is dropped, what is missing new."""
        misshaped = self.misshaped
        self.new += self.missing + misshaped
        self.drop(self.unexpected + misshaped)


def _adapt_input(fit: _Fit, model: nn.Module) -> list[str]:
    """Give first convolutions the model's number of image channels, by timm's rule. Returns the names of those that changed."""
    adapted = []
    for conv in _names(model.pretrained_cfg.get('first_conv')):
        name = f'{conv}.weight'
        if name not in fit.state or name not in fit.own:
            continue
        weight, shape = fit.state[name], fit.own[name].shape
        if weight.ndim != 4 or len(shape) != 4 or weight.shape[1] == shape[1]:
            continue
        try:
            weight = adapt_input_conv(shape[1], weight)
        except NotImplementedError:  # timm knows none for these channels
            continue
        if weight.shape == shape:
            fit.state[name] = weight
            adapted.append(name)
    return adapted


def _head(model: nn.Module) -> list[str]:
    """The entries of the classifier."""
    prefixes = tuple(f'{name}.' for name in _names(model.pretrained_cfg.get('classifier')))
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def _settle_head(fit: _Fit, head: list[str], source: str, reset_head: bool) -> None:
    """Keep the model's own classifier where that was asked for and the file's does not fit. Raises ValueError on other classes."""
    if reset_head:
        if any(name not in fit.state or fit.state[name].shape != fit.own[name].shape for name in head):
            fit.new += [name for name in head if name not in fit.new]
            fit.drop([name for name in head if name in fit.state])
        return
    for name in head:
        if name in fit.state and fit.state[name].shape[:1] != fit.own[name].shape[:1]:
            raise ValueError(f'{source} classifies {fit.state[name].shape[0]} classes, the model {fit.own[name].shape[0]}. Build the model '
                             f'with num_classes={fit.state[name].shape[0]}, or pass reset_head=True to keep the classifier untrained.')


def _drop_absent_parts(fit: _Fit, model: nn.Module, wrapper: nn.Module) -> None:
    """Drop what the whole classifier has and `model`, which may be cut for its features, has not."""
    unexpected = fit.unexpected
    if not unexpected:
        return
    if not hasattr(model, 'layouts') and (wrapper is not model or 'classifier' not in model.pretrained_cfg):
        fit.drop(unexpected)  # timm's feature models cut anywhere: in a stage, in a head
        return
    with torch.device('meta'):
        whole = timm.create_model(model.pretrained_cfg['architecture'])
    parts = {name for name, _ in whole.named_children()} | {info['module'] for info in getattr(whole, 'feature_info', ())}
    parts |= set(_names(model.pretrained_cfg.get('classifier')))  # of a head with a norm it may be the only part that is absent
    parts = tuple(f'{part}.' for part in parts if not any(name.startswith(f'{part}.') for name in fit.own))
    fit.drop([name for name in unexpected if name.startswith(parts)])


def _fit_parts(
        state: StateDict, model: nn.Module, own: StateDict, source: str, strict: bool, reset_head: bool,
) -> tuple[StateDict, LoadReport]:
    """Necks and heads of a detector, `own` being its entries that are in question; their names do not change."""
    parts = {_part(k) for k in own}
    if {'rpn_head', 'bbox_head'} <= {_part(k) for k in state} and 'bbox_head' not in parts:
        raise ValueError(f'{source} is a detector of MMDetection 1, whose classes come after the background. '
                         "Convert it by MMDetection 2's tools/model_converters/upgrade_model_version.py first.")
    state = {**{k: v for k, v in own.items() if k.endswith('.num_batches_tracked')}, **state}
    lacking = [k for k in state if _part(k) not in parts]
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own and k not in lacking]
    misshaped = [k for k in state if k in own and state[k].shape != own[k].shape]
    if strict:
        _refuse_names(missing, unexpected, type(model).__name__, source, 'load_checkpoint(model.backbone, ...) takes the backbone alone.')
        # heads of another number of classes differ in what they give, all else in what it takes as well
        if any(state[k].shape[1:] != own[k].shape[1:] for k in misshaped):
            _refuse_shapes(misshaped, state, own, type(model).__name__, source)
        if misshaped and not reset_head:
            k = misshaped[0]
            raise ValueError(f'{source} has another number of classes than the model: {_some("layers differ", misshaped)}{k} gives '
                             f'{state[k].shape[0]} values in the file, {own[k].shape[0]} in the model. Build the model with the number of '
                             'classes of the file, or pass reset_head=True to keep these layers untrained.')
    return ({k: v for k, v in state.items() if k in own and k not in misshaped},
            LoadReport(dropped=lacking + unexpected + misshaped, new=missing + misshaped))


def _part(name: str) -> str:
    """The neck or head of a detector that an entry belongs to."""
    return re.match(r'(roi_head\.)?[^.]+', name)[0]


def _find_model(wrapper: nn.Module) -> nn.Module:
    """The model inside a feature wrapper or a dense backbone. Raises ValueError if timm did not build it."""
    body = wrapper if hasattr(wrapper, 'pretrained_cfg') else getattr(wrapper, 'body', wrapper)
    model = body.model if isinstance(body, FeatureGetterNet) else body
    if not hasattr(model, 'pretrained_cfg'):
        raise ValueError(f'load_checkpoint takes what timm.create_model builds, our models included; {type(model).__name__} is not. '
                         'For other modules use their load_state_dict.')
    return model


def _path(wrapper: nn.Module, model: nn.Module) -> str:
    """What stands before the names of `model` in those of `wrapper`."""
    path = next(path for path, module in wrapper.named_modules() if module is model)
    return f'{path}.' if path else ''


def _beside(wrapper: nn.Module, model: nn.Module) -> StateDict:
    """What a dense backbone has beside its model."""
    return {} if wrapper is model else {name: value for name, value in wrapper.state_dict().items() if BESIDE_MODEL.match(name)}


def _names(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """timm's way to say none, one or several."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def _some(what: str, names: list[str]) -> str:
    return f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""}). ' if names else ''


def _refuse_names(missing: list[str], unexpected: list[str], model: str, source: str, advice: str) -> None:
    if missing or unexpected:
        raise ValueError(f'{source} does not fit {model}: {_some("missing", missing)}{_some("unexpected", unexpected)}Nothing was loaded. '
                         f'{advice}'.rstrip())


def _refuse_shapes(names: list[str], state: StateDict, own: StateDict, model: str, source: str) -> None:
    if names:
        k = names[0]
        raise ValueError(f'{source} does not fit {model}: {len(names)} entries have another shape, such as {k}: {tuple(state[k].shape)} '
                         f'in the file, {tuple(own[k].shape)} in the model. Is it another size of the family? Nothing was loaded.')
