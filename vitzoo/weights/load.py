"""`load_checkpoint`: a file into any model, ours or timm's, all or nothing, with a report of what became of every entry."""
import os
from itertools import chain

import torch.nn as nn

from .adapt import adapt_channels
from .files import StateDict, flaw_of, local_file, read_checkpoint, unwrap
from .fit import find_model, fit_detector, fit_model, path_of, suits
from .layout import BESIDE_MODEL, convert, strip_prefixes
from .names import COUNTER, clean_names, own_state, unwrapped, without_wrappers
from .report import LoadReport
from .words import fitted, one_line, shown

__all__ = ['LoadReport', 'load_checkpoint', 'rename_published']


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
            (an RPN, an auxiliary head) are dropped. Of a classifier or a backbone it gets the backbone. A file with what token reduction
            learned goes into a model behind `vitzoo.reduce_tokens`. Of a wrapper's model what is learned may be absent and is then new.
        source: a path (`.safetensors`, or a pickle, which is read with `weights_only`), `hf-hub:ORG/REPO[/FILE]`, or a state dict.
        strict: refuse entries that are missing, unexpected or of another shape. Without it they are listed as new and dropped.
        use_ema: take the averaged weights of a training checkpoint.
        reset_head: leave the classifier as it is where the file has another number of classes, or none; of a detector's heads the layers
            that have another number of outputs.
        prefix: take of the file what is below this name alone ('student'). Without it a detector's file is recognised by its 'backbone.'.

    Names that wrappers add (`torch.compile`, data parallelism, averages of weights) count on neither side: a plain file goes into a wrapped
    model and the reverse. Weights of a first convolution are adapted to the model's number of image channels by timm's rule, positions
    resampled to its image size, and the patches of a ViT of timm to its patch size. Of a file no more is read than goes into the model.

    Returns:
        What was loaded, renamed, dropped, left new and adapted.

    Raises:
        TypeError: `model` is no module, or `prefix` no string.
        ValueError: the source cannot be read, belongs to another family, does not fit, or has entries that are not plain tensors (sparse,
            quantised, on the meta device, ...); or the model has such, and could not take them. The model is then unchanged.
    """
    _check_arguments(model, prefix)
    if isinstance(source, (str, os.PathLike)):
        source = local_file(source)
        state, where = read_checkpoint(source, use_ema), shown(os.path.basename(os.fsdecode(source)))
    else:
        state, where = unwrap(source, use_ema, 'The state dict'), 'The state dict'
    published, ours = clean_names(state, where), clean_names(model.state_dict(), 'The model')
    state, target, left_out = {name: state[old] for name, old in published.items()}, unwrapped(model), []
    if prefix is not None:
        published, left_out = _take_prefix(published, prefix, where)
        state = {name: state[without_wrappers(old)] for name, old in published.items()}
    counters, beside = _take_counters(state, target), own_state(model)  # a wrapper's own, beside the model in it
    for name in own_state(target):
        del beside[name]

    fit = fit_model if hasattr(target, 'pretrained_cfg') or not hasattr(target, 'backbone') else fit_detector
    fitting, report = fit(target, state, where, strict, reset_head)
    fitting |= {name: value for name, value in counters.items() if name in beside and suits(value, beside[name])}
    report.dropped += [name for name in counters if name not in fitting]
    report.new += [name for name in beside if name not in fitting]

    report.dropped = [published.get(name, name) for name in report.dropped] + left_out
    report.num_others += len(left_out)
    report.renamed = {published[name]: ours[new] for name, new in report.renamed.items()}
    report.new, report.adapted = ([ours[name] for name in names] for names in (report.new, report.adapted))
    fitting = {ours[name]: value for name, value in fitting.items()}
    report.loaded = list(fitting)
    try:
        model.load_state_dict(fitting, strict=False)
    except RuntimeError as e:  # of a model that cannot be written to at all
        raise ValueError(f'{type(model).__name__} does not take its weights ({one_line(e)}).') from e
    return report


def rename_published(wrapper: nn.Module, state: StateDict, prefix: str = '') -> None:
    """Put our names in the place of published ones, in `state` itself: for loaders that are not ours and ask each module for its entries.

    Positions and image channels are adapted as `load_checkpoint` does.

    Args:
        wrapper: a model of ours, or a `DenseBackbone` around it; of others nothing changes.
        state: its entries are those below `prefix`.

    Raises:
        ValueError: they are another family's.
    """
    model = find_model(wrapper)
    if not hasattr(model, 'layouts'):
        return
    published = {name: value for name, value in state.items() if name.startswith(prefix)}
    for name, value in published.items():
        if flaw := flaw_of(value):
            raise ValueError(f'{shown(name)} {flaw}; expected a plain tensor that holds its values.')
    conversion = convert(strip_prefixes({name.removeprefix(prefix): value for name, value in published.items()}, model), model)
    conversion.adapted += adapt_channels(conversion.state, model)
    if not (conversion.renamed or conversion.dropped or conversion.adapted):
        return
    path, ours = path_of(wrapper, model), clean_names(wrapper.state_dict(), 'The model')
    for name in published:
        del state[name]
    for name, value in conversion.state.items():
        name = name if BESIDE_MODEL.match(name) else path + name
        state[prefix + ours.get(name, name)] = value


def _check_arguments(model: nn.Module, prefix: str | None) -> None:
    if not isinstance(model, nn.Module):
        advice = '; build it first: timm.create_model(NAME)' if isinstance(model, str) else ''
        raise TypeError(f'model={shown(repr(model))}: expected a module{advice}.')
    if not isinstance(prefix, (str, type(None))):
        raise TypeError(f'prefix={shown(repr(prefix))}: expected a name, or None.')
    for name, value in chain(model.state_dict().items(), model.named_buffers()):  # some buffers are in no state dict
        if flaw := flaw_of(value):
            raise ValueError(f'{shown(name)} of the model {flaw}: expected plain tensors that hold values. Build the model on the CPU or a '
                             'GPU, and load weights before it is quantised or offloaded.')


def _take_prefix(names: dict[str, str], prefix: str, source: str) -> tuple[dict[str, str], list[str]]:
    """Of names without wrappers, each to that in the file, those below `prefix`, without it; and the file's names of the rest."""
    prefix = without_wrappers(prefix.rstrip('.') + '.')
    part = {name.removeprefix(prefix): old for name, old in names.items() if name.startswith(prefix)}
    if not part:
        keys = list(names.values())
        raise ValueError(fitted(lambda number: (
            f'{source} holds nothing under prefix {shown(prefix)!r}; its keys start with {", ".join(map(shown, keys[:number]))}')))
    return part, [old for name, old in names.items() if not name.startswith(prefix)]


def _take_counters(state: StateDict, model: nn.Module) -> StateDict:
    """Take out of `state` what an average of weights counts, which is no part of the model in it."""
    own = own_state(model)
    return {name: state.pop(name) for name in list(state) if COUNTER.match(name) and name not in own}
