"""Checkpoint files: found, read safely, and unwrapped from what training scripts put around the weights."""
import argparse
import os
import pickle
import re
from collections import OrderedDict

import torch

StateDict = dict[str, torch.Tensor]

# What published training scripts stored beside the weights. Both load as inert containers.
INERT_GLOBALS = [argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode')]


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
        raise ValueError(_explain_refusal(path, e)) from e
    except Exception as e:  # whatever zip, pickle or header reading stumbles over in a damaged file
        raise ValueError(f'{path} could not be read, it may be truncated ({type(e).__name__}: {_first_line(e)}).') from e


def _explain_refusal(path: str, e: Exception) -> str:
    """What a refused file holds, and what can be done."""
    try:
        with torch.serialization.safe_globals(INERT_GLOBALS):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError):  # not in torch's zip format, or damaged
        names = []
    if any(name.startswith('mmengine.') for name in names):
        advice = "import vitzoo.mm first: it admits the log that mmengine's Runner puts beside the weights."
    else:
        advice = 'Have its author save the state dict alone, or convert it in a place where it is trusted.'
    reason = f'objects that are no weights, {", ".join(names)}' if names else f'more than weights, or is no checkpoint ({_first_line(e)})'
    return f'{path} was refused: it holds {reason}. Nothing in it was executed. {advice}'


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
