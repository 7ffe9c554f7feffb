"""`load_checkpoint`: any published layout into any of our models, all or nothing, with a report of what became of every entry."""
import os
import re
from dataclasses import asdict, dataclass, field

import timm
import torch
import torch.nn as nn
from timm.models._features import FeatureGetterNet

from .files import local_file, read_checkpoint, unwrap
from .layout import BESIDE_MODEL, StateDict, convert, inner_names, keep_counters


@dataclass
class LoadReport:
    """What became of a checkpoint.

    loaded: entries of the model that came from the file. renamed: published name to ours. dropped: entries of the file that belong to
    another published form and have no place in the model. new: entries of the model that the file does not have and that keep their
    initial values.
    """
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f'{len(self.loaded)} loaded ({len(self.renamed)} renamed), {len(self.dropped)} dropped, {len(self.new)} new'

    def to_dict(self) -> dict:
        return asdict(self)


def load_checkpoint(
        model: nn.Module,
        source: str | os.PathLike | dict,
        *,
        strict: bool = True,
        use_ema: bool = False,
        reset_head: bool = False,
) -> LoadReport:
    """Load published or own weights into a model.

    Args:
        model: one of our models, its `features_only` wrapper, a `DenseBackbone` around it, or a detector or segmentor with such a
            `backbone`. The latter takes a whole detector's file whole: ours, or one of MMDetection 2 and 3 or MMSegmentation 0.x and 1.x,
            which name necks and heads alike. Parts that it has not (an RPN, an auxiliary head) are dropped. Of a classifier or a backbone
            it gets the backbone.
        source: a path (`.safetensors`, or a pickle, which is read with `weights_only`), `hf-hub:ORG/REPO[/FILE]`, or a state dict.
        strict: refuse entries that are missing, unexpected or of another shape. Without it they are listed as new and dropped.
        use_ema: take the averaged weights of a training checkpoint.
        reset_head: leave the classifier as it is where the file has another number of classes, or none; of a detector's heads the layers
            that have another number of outputs.

    Returns:
        What was loaded, renamed, dropped and left new.

    Raises:
        ValueError: the source cannot be read, belongs to another family, or does not fit. The model is then unchanged.
    """
    state = unwrap(source, use_ema) if isinstance(source, dict) else read_checkpoint(local_file(source), use_ema)
    name = 'The state dict' if isinstance(source, dict) else str(source)
    own, is_detector = model.state_dict(), hasattr(model, 'backbone')
    if is_detector and set(state) == set(own):  # its own file, whoever's its backbone is
        state, report = _fit_parts(state, model, own, name, strict, reset_head)
    else:
        inside, others = inner_names(state)
        wrapper = model.backbone if is_detector else model
        fitting, report = _fit_model(wrapper, {k: state[v] for k, v in inside.items()}, name, strict, reset_head)
        report.renamed = {inside[k]: v for k, v in report.renamed.items()}
        report.dropped = [inside.get(k, k) for k in report.dropped]
        if is_detector:
            fitting = {f'backbone.{k}': v for k, v in fitting.items()}
            report.renamed = {k: f'backbone.{v}' for k, v in report.renamed.items()}
            report.new = [f'backbone.{k}' for k in report.new]
        if is_detector and not all(k.startswith('head.') for k in others):  # more than a classifier
            parts, about = _fit_parts({k: state[v] for k, v in others.items()}, model,
                                      {k: v for k, v in own.items() if not k.startswith('backbone.')}, name, strict, reset_head)
            fitting.update(parts)
            report.dropped += [others[k] for k in about.dropped]
            report.new += about.new
        else:
            report.dropped += others.values()
        state = fitting
    model.load_state_dict(state, strict=False)
    report.loaded = list(state)
    return report


def _fit_model(wrapper: nn.Module, state: StateDict, name: str, strict: bool, reset_head: bool) -> tuple[StateDict, LoadReport]:
    """What of a file goes into a model of ours, by the names of `wrapper`, and what becomes of the rest, by those of `state`."""
    target = _inner(wrapper)
    dropped, conversion, own = [], convert(state, target), target.state_dict()
    norms = {k: conversion.state.pop(k) for k in list(conversion.state) if BESIDE_MODEL.match(k)}
    if wrapper is not target:  # a dense backbone has its output norms beside the model
        own_norms = {k: v for k, v in wrapper.state_dict().items() if BESIDE_MODEL.match(k)}
        own.update(own_norms)
        norms = {k: v for k, v in norms.items() if k in own_norms or dropped.append(k)}
    else:
        dropped += list(norms)
        norms, own_norms = {}, {}
    state = {**keep_counters(conversion.state, target), **norms}

    classifiers = target.pretrained_cfg['classifier']
    prefixes = tuple(f'{name}.' for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    head = tuple(k for k in own if k.startswith(prefixes))
    new = conversion.new + [k for k in own_norms if k not in norms]
    if reset_head and any(k not in state or state[k].shape != own[k].shape for k in head):
        new += head
        dropped += [k for k in head if state.pop(k, None) is not None]
    elif any(k in state and state[k].shape[0] != own[k].shape[0] for k in head):
        k = next(k for k in head if state[k].shape[0] != own[k].shape[0])
        raise ValueError(f'{name} classifies {state[k].shape[0]} classes, the model {own[k].shape[0]}. Build the model with '
                         f'num_classes={state[k].shape[0]}, or pass reset_head=True to keep the classifier untrained.')

    unexpected = [k for k in state if k not in own]
    if unexpected:
        absent = _absent_parts(target)
        unexpected = [k for k in unexpected if not k.startswith(absent) or dropped.append(k)]
    missing = [k for k in own if k not in state and k not in new]
    misshaped = [k for k in state if k in own and state[k].shape != own[k].shape]
    if strict:
        advice = 'Pass reset_head=True to start with a new classifier.' if missing and set(missing) == set(head) else ''
        _refuse_names(missing, unexpected, target.pretrained_cfg['architecture'], name, advice)
        _refuse_shapes(misshaped, state, own, name)
    dropped += unexpected + misshaped
    state = {k: v for k, v in state.items() if k in own and k not in misshaped}

    path = next(path for path, module in wrapper.named_modules() if module is target)
    full = {k: k if k in own_norms or not path else f'{path}.{k}' for k in own}
    published = {ours: name for name, ours in conversion.renamed.items()}
    return {full[k]: v for k, v in state.items()}, LoadReport(
        renamed={name: full[ours] for name, ours in conversion.renamed.items() if ours in state},
        dropped=[published.get(k, k) for k in dropped] + conversion.dropped,
        new=[full[k] for k in new + missing + misshaped])


def _fit_parts(state: StateDict, model: nn.Module, own: StateDict, name: str, strict: bool,
               reset_head: bool) -> tuple[StateDict, LoadReport]:
    """The same for necks and heads of a detector, `own` being its entries that are in question; their names do not change."""
    parts = {_part(k) for k in own}
    if {'rpn_head', 'bbox_head'} <= {_part(k) for k in state} and 'bbox_head' not in parts:
        raise ValueError(f'{name} is a detector of MMDetection 1, whose classes come after the background. '
                         "Convert it by MMDetection 2's tools/model_converters/upgrade_model_version.py first.")
    state = {**{k: v for k, v in own.items() if k.endswith('.num_batches_tracked')}, **state}
    lacking = [k for k in state if _part(k) not in parts]
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own and k not in lacking]
    misshaped = [k for k in state if k in own and state[k].shape != own[k].shape]
    if strict:
        _refuse_names(missing, unexpected, type(model).__name__, name, 'load_checkpoint(model.backbone, ...) takes the backbone alone.')
        # heads of another number of classes differ in what they give, all else in what it takes as well
        if any(state[k].shape[1:] != own[k].shape[1:] for k in misshaped):
            _refuse_shapes(misshaped, state, own, name)
        if misshaped and not reset_head:
            k = misshaped[0]
            raise ValueError(f'{name} has another number of classes than the model: {_some("layers differ", misshaped)}{k} gives '
                             f'{state[k].shape[0]} values in the file, {own[k].shape[0]} in the model. Build the model with the number of '
                             'classes of the file, or pass reset_head=True to keep these layers untrained.')
    return ({k: v for k, v in state.items() if k in own and k not in misshaped},
            LoadReport(dropped=lacking + unexpected + misshaped, new=missing + misshaped))


def _part(name: str) -> str:
    """The neck or head of a detector that an entry belongs to."""
    return re.match(r'(roi_head\.)?[^.]+', name)[0]


def _inner(wrapper: nn.Module) -> nn.Module:
    """The model of ours inside a feature wrapper or a dense backbone."""
    model = getattr(wrapper, 'body', wrapper)
    model = model.model if isinstance(model, FeatureGetterNet) else model
    if not hasattr(model, 'layouts'):
        raise ValueError(f'load_checkpoint knows the layouts of our own families; {type(model).__name__} is none of them. '
                         'For other models use timm.models.load_checkpoint.')
    return model


def _absent_parts(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of what the whole classifier has and `model`, which may be cut for its features, has not."""
    with torch.device('meta'):
        whole = timm.create_model(model.pretrained_cfg['architecture'])
    parts = {name for name, _ in whole.named_children()} | {info['module'] for info in whole.feature_info}
    own = model.state_dict()
    return tuple(f'{part}.' for part in parts if not any(name.startswith(f'{part}.') for name in own))


def _some(what: str, names: list[str]) -> str:
    return f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""}). ' if names else ''


def _refuse_names(missing: list[str], unexpected: list[str], model: str, source: str, advice: str) -> None:
    if missing or unexpected:
        raise ValueError(f'{source} does not fit {model}: {_some("missing", missing)}{_some("unexpected", unexpected)}Nothing was loaded. '
                         f'{advice}'.rstrip())


def _refuse_shapes(names: list[str], state: StateDict, own: StateDict, source: str) -> None:
    if names:
        k = names[0]
        raise ValueError(f'{source} does not fit: {len(names)} entries have another shape, such as {k}: {tuple(state[k].shape)} in the '
                         f'file, {tuple(own[k].shape)} in the model. Is it another size of the family? Nothing was loaded.')
