"""What of a file goes where in a model. Nothing is changed here: each function answers with what would be, or raises ValueError.

All names are without what wrappers add, see `names`.
"""
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import timm
import torch
import torch.nn as nn
from timm.models._features import FeatureGetterNet

from .adapt import adapt_channels, adapt_patches
from .files import WEIGHT_DTYPES, StateDict
from .layout import BESIDE_MODEL, convert, inner_names, keep_counters
from .names import own_state, unwrapped, without_wrappers
from .report import LoadReport
from .words import fitted, shown, some

# Names of what methods of vitzoo.reduction learn; that package stands above this one.
LEARNED_BY = {'dynamicvit': r'^score_predictor\.', 'sparsifiner': r'\.attn\.mask_predictor\.'}


def fit_detector(model: nn.Module, state: StateDict, source: str, strict: bool, reset_head: bool) -> tuple[StateDict, LoadReport]:
    """A file for a whole detector or segmentor, or for its backbone; the rest of it then stays new."""
    own, backbone = own_state(model), unwrapped(model.backbone)
    if set(state) == set(own) and (_timm_model(backbone) is None or not any(
            name.startswith('backbone.') and not suits(value, own[name]) for name, value in state.items())):
        return _fit_parts(state, model, own, source, strict, reset_head)  # its own file, whoever's its backbone is
    fitting, report, others = _fit_backbone(backbone, state, source, strict, reset_head)
    fitting = {f'backbone.{name}': value for name, value in fitting.items()}
    report.renamed = {name: f'backbone.{new}' for name, new in report.renamed.items()}
    report.new = [f'backbone.{name}' for name in report.new]
    report.adapted = [f'backbone.{name}' for name in report.adapted]
    own = {name: value for name, value in own.items() if not name.startswith('backbone.')}
    if all(name.startswith('head.') for name in others):  # no more than a classifier
        report.dropped += others.values()
        report.new += own
        return fitting, report
    parts, about = _fit_parts({name: state[old] for name, old in others.items()}, model, own, source, strict, reset_head)
    report.dropped += [others[name] for name in about.dropped]
    report.new += about.new
    return {**fitting, **parts}, report


def fit_model(wrapper: nn.Module, state: StateDict, source: str, strict: bool, reset_head: bool) -> tuple[StateDict, LoadReport]:
    """A file for a model or a wrapper of one."""
    fitting, report, others = _fit_backbone(wrapper, state, source, strict, reset_head)
    report.dropped += others.values()
    report.num_others = len(others)
    return fitting, report


def _fit_backbone(
        wrapper: nn.Module, state: StateDict, source: str, strict: bool, reset_head: bool,
) -> tuple[StateDict, LoadReport, dict[str, str]]:
    """The part of a file that is for one model; the rest, if it is a detector's: name without prefixes -> name in the file."""
    model = find_model(wrapper)
    inside, others = inner_names(state, model)
    # a backbone has its tokens reduced from the start, and begins to learn with a file of the model as it was
    learned = _learned(own_state(model)) if wrapper is not model else []
    if any(name in inside for name in learned):
        learned = []
    if strict:
        _refuse_reduction(inside, [name for name in own_state(model) if name not in learned], source)
    conversion = convert({name: state[old] for name, old in inside.items()}, model)
    own, beside = own_state(model), _beside(wrapper, model)
    state = {**{name: value for name, value in beside.items() if name.endswith('.num_batches_tracked')}, **conversion.state}
    fit = _Fit(keep_counters(state, model), {**own, **beside}, new=[*conversion.new, *learned])

    fit.drop([name for name in fit.state if BESIDE_MODEL.match(name) and name not in fit.own])
    fit.new += [name for name in beside if name not in fit.state]
    adapted = conversion.adapted + adapt_patches(fit.state, model) + adapt_channels(fit.state, model)
    head = _head(model)
    _settle_head(fit, head, source, reset_head)
    _drop_absent_parts(fit, model, wrapper)
    if strict:
        missing, architecture = fit.missing, model.pretrained_cfg['architecture']
        advice = 'Pass reset_head=True to start with a new classifier.' if missing and set(missing) == set(head) else ''
        _refuse_names(missing, fit.unexpected, architecture, source, advice)
        _refuse_misfits(fit.misfits, fit.state, fit.own, architecture, source)
    fit.leave_out_the_rest()

    path = path_of(wrapper, model)
    full = {name: name if name in beside else path + name for name in fit.own}
    published = {ours: name for name, ours in conversion.renamed.items()}
    dropped = [published.get(name, name) for name in fit.dropped] + conversion.dropped
    return {full[name]: value for name, value in fit.state.items()}, LoadReport(
        renamed={inside[name]: full[ours] for name, ours in conversion.renamed.items() if ours in fit.state},
        dropped=[inside.get(name, name) for name in dropped],  # a layout may name a part of an entry
        new=[full[name] for name in fit.new],
        adapted=[full[name] for name in adapted if name in fit.state]), others


def _learned(names: Iterable[str]) -> list[str]:
    """Those of what token reduction methods learn."""
    return [name for name in names if any(re.search(pattern, name) for pattern in LEARNED_BY.values())]


def _refuse_reduction(names: Iterable[str], own: Iterable[str], source: str) -> None:
    """Raise ValueError where the file has what a token reduction method learned and the model has not, or the reverse."""
    for method, pattern in LEARNED_BY.items():
        in_file, in_model = (next((name for name in group if re.search(pattern, name)), None) for group in (names, own))
        if in_file and not in_model:
            raise ValueError(f'{source} has what token reduction by {method} learned, such as {shown(in_file)}, and the model has no place '
                             f'for it: call vitzoo.reduce_tokens(model, {method!r}, ...) first, or pass strict=False to drop it. '
                             'Nothing was loaded.')
        if in_model and not in_file:
            raise ValueError(f'{source} has not what token reduction by {method} learns, such as {shown(in_model)}: load it before '
                             'vitzoo.reduce_tokens, or pass strict=False to leave that untrained. Nothing was loaded.')


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
    def misfits(self) -> list[str]:
        return [name for name in self.state if name in self.own and not suits(self.state[name], self.own[name])]

    def drop(self, names: list[str]) -> None:
        self.dropped += names
        self.state = {name: value for name, value in self.state.items() if name not in names}

    def leave_out_the_rest(self) -> None:
        """What does not fit is dropped, what is missing new."""
        misfits = self.misfits
        self.new += self.missing + misfits
        self.drop(self.unexpected + misfits)


def suits(value: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a value can take an entry's place: of its shape, and numbers that mean the same in the entry's precision."""
    if own.is_floating_point():
        same_kind = value.dtype in WEIGHT_DTYPES
    else:  # counters in a file of half precision are halves
        same_kind = torch.bool not in (value.dtype, own.dtype) and (value.dtype in WEIGHT_DTYPES or not value.is_floating_point())
    return value.shape == own.shape and (value.dtype == own.dtype or same_kind)


def _head(model: nn.Module) -> list[str]:
    """The entries of the classifier."""
    prefixes = tuple(f'{name}.' for name in _names(model.pretrained_cfg.get('classifier')))
    return [name for name in own_state(model) if name.startswith(prefixes)]


def _settle_head(fit: _Fit, head: list[str], source: str, reset_head: bool) -> None:
    """Keep the model's own classifier where that was asked for and the file's does not fit. Raises ValueError on other classes."""
    if reset_head:
        if any(name not in fit.state or fit.state[name].shape != fit.own[name].shape for name in head):
            fit.new += [name for name in head if name not in fit.new]
            fit.drop([name for name in head if name in fit.state])
        return
    for name in head:
        if name in fit.state and fit.state[name].ndim == fit.own[name].ndim and fit.state[name].shape[:1] != fit.own[name].shape[:1]:
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
    misfits = [k for k in state if k in own and not suits(state[k], own[k])]
    if strict:
        _refuse_names(missing, unexpected, type(model).__name__, source, 'load_checkpoint(model.backbone, ...) takes the backbone alone.')
        # heads of another number of classes differ in what they give, all else in what it takes as well
        if any(state[k].ndim != own[k].ndim or state[k].shape[1:] != own[k].shape[1:] or state[k].shape == own[k].shape for k in misfits):
            _refuse_misfits(misfits, state, own, type(model).__name__, source)
        if misfits and not reset_head:
            k = misfits[0]
            raise ValueError(fitted(lambda number: (
                f'{source} has another number of classes than the model: {some("layers differ", misfits, number)}{shown(k)} gives '
                f'{state[k].shape[0]} values in the file, {own[k].shape[0]} in the model. Build the model with the number of '
                'classes of the file, or pass reset_head=True to keep these layers untrained.')))
    return ({k: v for k, v in state.items() if k in own and k not in misfits},
            LoadReport(dropped=lacking + unexpected + misfits, new=missing + misfits))


def _part(name: str) -> str:
    """The neck or head of a detector that an entry belongs to."""
    return re.match(r'(roi_head\.)?[^.]*', name)[0]


def _timm_model(wrapper: nn.Module) -> nn.Module | None:
    """What timm built inside a feature wrapper or a dense backbone, compiled or not; None if it built nothing there."""
    body = wrapper if hasattr(wrapper, 'pretrained_cfg') else unwrapped(getattr(wrapper, 'body', wrapper))
    model = unwrapped(body.model) if isinstance(body, FeatureGetterNet) else body
    return model if hasattr(model, 'pretrained_cfg') else None


def find_model(wrapper: nn.Module) -> nn.Module:
    """The model inside a feature wrapper or a dense backbone. Raises ValueError if timm did not build it."""
    model = _timm_model(wrapper)
    if model is None:
        raise ValueError(f'load_checkpoint takes what timm.create_model builds, our models included; {type(wrapper).__name__} is not. '
                         'For other modules use their load_state_dict.')
    return model


def path_of(wrapper: nn.Module, model: nn.Module) -> str:
    """What stands before the names of `model` in those of `wrapper`."""
    path = next(path for path, module in wrapper.named_modules() if module is model)
    return without_wrappers(f'{path}.') if path else ''


def _beside(wrapper: nn.Module, model: nn.Module) -> StateDict:
    """What a dense backbone has beside its model."""
    return {} if wrapper is model else {name: value for name, value in own_state(wrapper).items() if BESIDE_MODEL.match(name)}


def _names(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """timm's way to say none, one or several."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def _refuse_names(missing: list[str], unexpected: list[str], model: str, source: str, advice: str) -> None:
    if missing or unexpected:
        raise ValueError(fitted(lambda number: (
            f'{source} does not fit {model}: {some("missing", missing, number)}{some("unexpected", unexpected, number)}Nothing was loaded. '
            f'{advice}'.rstrip())))


def _refuse_misfits(names: list[str], state: StateDict, own: StateDict, model: str, source: str) -> None:
    """For entries of another shape, or of another kind of numbers."""
    if not names:
        return
    k = names[0]
    if state[k].shape == own[k].shape:
        raise ValueError(f'{source} does not fit {model}: {len(names)} entries hold other numbers, such as {shown(k)}: {state[k].dtype} in '
                         f'the file, {own[k].dtype} in the model. Save the file in a precision of 16 bits or more. Nothing was loaded.')
    given, expected = (shown(tuple(x[k].shape), 40) for x in (state, own))
    raise ValueError(f'{source} does not fit {model}: {len(names)} entries have another shape, such as {shown(k)}: {given} in the file, '
                     f'{expected} in the model. Is it another size of the family? Nothing was loaded.')
