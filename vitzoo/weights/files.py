"""Checkpoint files: found, read safely, and unwrapped from what training scripts put around the weights."""
import os
import pickle
import re

import torch

from .pickles import explain_refusal, load_pickle
from .words import one_line, shown

StateDict = dict[str, torch.Tensor]
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # fewer bits mean little without a scale

# what training scripts call the weights, and their average
WEIGHTS = ('model', 'state_dict', 'model_state_dict', 'module')
AVERAGED = ('model_ema', 'state_dict_ema', 'ema_state_dict')


def read_checkpoint(path: str | os.PathLike, use_ema: bool = False) -> StateDict:
    """The weights in a file (.safetensors, or a pickle read with weights_only), unwrapped from what training scripts put around them.

    They stay in the file, mapped into memory, until they are used. Raises ValueError if the file is missing, truncated, holds anything but
    data, or has no weights of the kind asked for.
    """
    return unwrap(read_file(path, mmap=True), use_ema, os.fspath(path))


def read_file(path: str | os.PathLike, mmap: bool = False) -> object:
    """All that is in a checkpoint file. Raises ValueError if it is missing, truncated, or holds anything but data.

    mmap: leave tensors in the file until they are used; whoever keeps them must not write to the file.
    """
    path = os.fsdecode(path)
    if not os.path.isfile(path):
        raise ValueError(f'{path}: no such checkpoint file.')
    try:
        if path.endswith('.safetensors'):
            from safetensors.torch import load_file
            return load_file(path)
        return load_pickle(path, mmap)
    except pickle.UnpicklingError as e:
        raise ValueError(explain_refusal(path, e)) from None  # what torch says of it advises to switch the check off
    except Exception as e:  # whatever zip, pickle or header reading stumbles over in a damaged file
        raise ValueError(f'{path} could not be read, it may be truncated ({type(e).__name__}: {one_line(e)}).') from None


def read_meta(path: str | os.PathLike) -> dict:
    """What a checkpoint says of itself under 'meta', as files of MMDetection and MMSegmentation do; {} where it says nothing.

    Raises ValueError as `read_file` does.
    """
    return meta_of(read_file(path, mmap=True))


def meta_of(content: object) -> dict:
    """The same of a file's content."""
    meta = content.get('meta') if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


def unwrap(content: object, use_ema: bool = False, name: str = 'The checkpoint') -> StateDict:
    """The state dict inside {'model': ...}, {'state_dict': ...}, {'model_ema': ...}; prefixes stay.

    mmengine's EMAHook saves the averaged weights as 'state_dict', which is then the answer whatever `use_ema`, and the trained ones as
    'ema_state_dict'.

    Raises ValueError if there is none, or one whose entries are not plain tensors under names.
    """
    keys = AVERAGED if use_ema else WEIGHTS
    if use_ema and isinstance(content, dict) and {'state_dict', 'ema_state_dict'} <= content.keys():
        keys = ('state_dict',)
    if isinstance(content, dict):
        inner = next((content[k] for k in keys if isinstance(content.get(k), dict)), None)
        if inner is not None:
            content = inner.get('state_dict', inner) if isinstance(inner.get('state_dict'), dict) else inner
        elif use_ema:
            raise ValueError(f'{name} holds no averaged weights (none of {", ".join(keys)}); its keys start with '
                             f'{", ".join(map(shown, list(content)[:3])) or "nothing"}. Load it with use_ema=False.')
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        values = content.values() if isinstance(content, dict) else [content]
        kinds = sorted({type(v).__name__ for v in values}) or ['nothing']
        raise ValueError(f'{name}: expected a state dict (names to tensors), bare or under {" or ".join(map(repr, keys))}; found '
                         f'{", ".join(map(shown, kinds[:3]))}{", ..." if len(kinds) > 3 else ""}.')
    for key, value in content.items():
        if not isinstance(key, str) or not key:
            raise ValueError(f'{name}: expected names of entries, found {shown(repr(key))}.')
        if flaw := flaw_of(value):
            raise ValueError(f'{name}: {shown(key)} {flaw}; expected a plain tensor that holds its values.')
    return dict(content)


def flaw_of(value: object) -> str | None:
    """What keeps a value from being a tensor that can be copied, compared and resampled at a cost that its own size tells; None if nothing.

    Of more values than are stored is a tensor that `expand` made, or one whose storage was freed.
    """
    if not isinstance(value, torch.Tensor):
        return f'is of type {type(value).__name__}'
    if value.is_nested:
        return 'is a nested tensor'
    if value.is_quantized:
        return 'is quantised'
    if value.layout != torch.strided:
        return f'is sparse ({value.layout})'
    if value.is_meta:
        return 'is on the meta device'
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f'is of type {type(value).__name__}'
    if value.is_complex():
        return 'is complex'
    stored = value.untyped_storage().nbytes() // value.element_size()
    if value.numel() > stored:
        return f'has {value.numel()} values, of which {stored} are stored'
    return None


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
        raise ValueError(f'{source} could not be downloaded ({type(e).__name__}: {one_line(e)}).') from e
