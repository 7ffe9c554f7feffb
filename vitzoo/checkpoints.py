"""`load_checkpoint`: any published layout into any of our models, all or nothing, with a report of what became of every entry."""
import os
import re
from dataclasses import asdict, dataclass, field

import timm
import torch
import torch.nn as nn
from timm.models._features import FeatureGetterNet

from .models._pretrained import BESIDE_MODEL, StateDict, convert, keep_counters, read_checkpoint, strip_prefixes, unwrap


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
            `backbone`. A whole detector's own checkpoint is loaded whole; of any other file it gets the backbone.
        source: a path (`.safetensors`, or a pickle, which is read with `weights_only`), `hf-hub:ORG/REPO[/FILE]`, or a state dict.
        strict: refuse entries that are missing, unexpected or of another shape. Without it they are listed as new and dropped.
        use_ema: take the averaged weights of a training checkpoint.
        reset_head: leave the classifier as it is where the file has another number of classes, or none.

    Returns:
        What was loaded, renamed, dropped and left new.

    Raises:
        ValueError: the source cannot be read, belongs to another family, or does not fit. The model is then unchanged.
    """
    state = unwrap(source, use_ema) if isinstance(source, dict) else read_checkpoint(local_file(source), use_ema)
    name = 'The state dict' if isinstance(source, dict) else str(source)
    whole = model.state_dict()
    if hasattr(model, 'backbone') and set(state) == set(whole):  # a detector's own file
        _refuse_shapes([k for k in state if state[k].shape != whole[k].shape], state, whole, name)
        model.load_state_dict(state)
        return LoadReport(loaded=list(state))
    wrapper = model.backbone if hasattr(model, 'backbone') else model
    target = _inner(wrapper)

    state, dropped = strip_prefixes(state)
    conversion, own = convert(state, target), target.state_dict()
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
        if unexpected or missing:
            advice = ' Pass reset_head=True to start with a new classifier.' if missing and set(missing) == set(head) else ''
            raise ValueError(f'{name} does not fit {target.pretrained_cfg["architecture"]}: {_some("missing", missing)}'
                             f'{_some("unexpected", unexpected)}Nothing was loaded.{advice}')
        _refuse_shapes(misshaped, state, own, name)
    dropped += unexpected + misshaped
    new += missing + misshaped
    state = {k: v for k, v in state.items() if k in own and k not in misshaped}

    target.load_state_dict({k: v for k, v in state.items() if k not in norms}, strict=False)
    wrapper.load_state_dict(norms, strict=False)
    published = {ours: name for name, ours in conversion.renamed.items()}
    return LoadReport(
        loaded=list(state),
        renamed={name: ours for name, ours in conversion.renamed.items() if ours in state},
        dropped=[published.get(k, k) for k in dropped] + conversion.dropped,
        new=new)


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


def _refuse_shapes(names: list[str], state: StateDict, own: StateDict, source: str) -> None:
    if names:
        k = names[0]
        raise ValueError(f'{source} does not fit: {len(names)} entries have another shape, such as {k}: {tuple(state[k].shape)} in the '
                         f'file, {tuple(own[k].shape)} in the model. Is it another size of the family? Nothing was loaded.')


def local_file(source: str | os.PathLike) -> str | os.PathLike:
    """A path as it is; `hf-hub:ORG/REPO[/FILE]` downloaded (or found in the cache)."""
    match = re.fullmatch(r'hf[-_]hub:([\w.-]+/[\w.-]+)(?:/(.+))?', str(source))
    if not match:
        return source
    from huggingface_hub import hf_hub_download
    repo, file = match.groups()
    try:
        return hf_hub_download(repo, file or 'model.safetensors')
    except Exception as e:  # not found, no network, no access: one answer for the user
        raise ValueError(f'{source} could not be downloaded ({type(e).__name__}: {e}).') from e
