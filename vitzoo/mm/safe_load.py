"""Checkpoints of mmengine's Runner under `weights_only=True`, the default of torch.load since 2.6.

Besides tensors such a file holds HistoryBuffers (the log so far): numpy arrays, and methods of the class, which pickle writes as
`getattr(HistoryBuffer, 'mean')`. `allow_runner_checkpoints` admits exactly these, so that resuming and mmengine's own loading work, while
a file that asks for anything else is refused as before.
"""
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
from torch.serialization import add_safe_globals

from vitzoo.weights import local_file, read_file

__all__ = ['allow_runner_checkpoints', 'read_content']

_STATISTICS = ('min', 'max', 'mean', 'current')


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


def read_content(source: str | Path) -> object:
    """All that is in a checkpoint: a path, `hf-hub:ORG/REPO[/FILE]`, or an address that mmengine can load."""
    if '://' in str(source):
        from mmengine.runner import CheckpointLoader
        return CheckpointLoader.load_checkpoint(str(source), map_location='cpu', logger='current')
    return read_file(local_file(source))
