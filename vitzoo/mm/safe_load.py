"""Checkpoints of mmengine's Runner under `weights_only=True`, the default of torch.load since 2.6.

Besides tensors such a file holds HistoryBuffers (the log so far): numpy arrays, and methods of the class, which pickle writes as
`getattr(HistoryBuffer, 'mean')`. `allow_runner_checkpoints` admits exactly these, so that resuming and mmengine's own loading work, while
a file that asks for anything else is refused as before.
"""
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
from torch.serialization import add_safe_globals, get_unsafe_globals_in_checkpoint

__all__ = ['allow_runner_checkpoints', 'explain_refusal', 'unsafe_globals']

_STATISTICS = ('min', 'max', 'mean', 'current')
# modules through which a pickle could run anything; never to be allowed, whatever the file is
_DANGEROUS = {'builtins', '__builtin__', 'os', 'posix', 'nt', 'sys', 'subprocess', 'importlib', 'runpy', 'shutil', 'socket', 'pickle',
              'operator', 'functools', 'types', 'ctypes', 'code', 'pty', 'webbrowser', 'pip', 'pdb', 'timeit'}


def _statistic(cls, name):
    """Stands in the place of `getattr`, which would reach any attribute of anything."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if cls is not HistoryBuffer or type(name) is not str or name not in _STATISTICS:
        raise UnpicklingError(f'a checkpoint may ask for {", ".join(_STATISTICS)} of HistoryBuffer alone, not for {name!r} of {cls!r}')
    return getattr(HistoryBuffer, name)


def allow_runner_checkpoints() -> None:
    """Register with torch, for this process, what a checkpoint of mmengine's Runner contains. Idempotent."""
    from mmengine.logging.history_buffer import HistoryBuffer

    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray  # numpy 2, numpy 1
    add_safe_globals([
        HistoryBuffer, (_statistic, 'builtins.getattr'), np.ndarray, np.dtype,
        *{type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']},
        *((getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
          for name in ('scalar', '_reconstruct') for core in ('_core', 'core')),
    ])


def unsafe_globals(path: str | Path) -> list[str]:
    """Names of the objects in a checkpoint that `torch.load(weights_only=True)` refuses, a Runner's own allowed; the file is not loaded.

    ValueError for a file that torch.save did not write in its zip format.
    """
    allow_runner_checkpoints()
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError) as e:  # RuntimeError: a damaged archive
        raise ValueError(f'{path} cannot be listed: expected a file written by torch.save (zip format, torch 1.6 or later): {e}') from e


def explain_refusal(path: str | Path) -> str:
    """What a refused checkpoint contains and what can be done about it, in sentences for the user."""
    names = unsafe_globals(path)
    if not names:
        return (f'{path} holds no object that torch.load(weights_only=True) refuses by name. If it is refused all the same, it misuses one '
                'that is allowed: do not trust it.')
    dangerous = [name for name in names if name.split('.')[0] in _DANGEROUS]
    others = [name for name in names if name not in dangerous]
    lines = [f'{path} holds objects other than weights, and so torch.load(weights_only=True) refuses it: {", ".join(names)}.']
    if dangerous:
        lines.append(f'{", ".join(dangerous)} could run any code when loaded and should never be allowed; get the weights from elsewhere, '
                     'or have the author save the state_dict alone.')
    if others:
        modules = sorted({name.rpartition('.')[0] for name in others})
        lines.append('If you know and trust these classes, allow them before loading:\n'
                     f'    import torch, {", ".join(modules)}\n    torch.serialization.add_safe_globals([{", ".join(others)}])')
    lines.append('If you trust the whole file: set the environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 for one run; it can then do '
                 'anything that you can do.')
    return '\n'.join(lines)
