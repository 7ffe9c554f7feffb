"""Checkpoints of mmengine's Runner, read as data whoever reads them.

Besides tensors such a file holds HistoryBuffers (the log so far): numpy arrays, and methods of the class, which pickle writes as
`getattr(HistoryBuffer, 'mean')`. `allow_runner_checkpoints` admits exactly these, so that resuming and mmengine's own loading work, while
a file that asks for anything else is refused as before. `read_for_mmengine` has mmengine read files by our reader.
"""
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
from mmengine.dist import barrier, get_local_rank
from mmengine.runner import CheckpointLoader
from timm.models._hub import download_cached_file
from torch.serialization import add_safe_globals

from vitzoo.weights import local_file, read_file
from vitzoo.weights.files import meta_of, unwrap

__all__ = ['allow_runner_checkpoints', 'check_resumable', 'read_content', 'read_for_mmengine']

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


def read_for_mmengine() -> None:
    """Have mmengine read files, local ones and those of the web, by our reader: as data whatever torch's environment variables say, with
    one ValueError for whatever is wrong with a file. Idempotent.
    """
    CheckpointLoader.register_scheme('', load_from_file, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_web, force=True)


def load_from_file(filename: str, map_location: object = None) -> dict:
    """What mmengine asks of a loader. Its content goes to the CPU: whoever takes it, copies it to where the model is.

    The libraries look for a 'meta' in each file, so that those that have none get an empty one.

    Raises ValueError if it cannot be read, or holds no state dict.
    """
    content = read_file(Path(filename).expanduser())
    state = unwrap(content, name=filename)
    return {**(content if 'state_dict' in content else {'state_dict': state}), 'meta': meta_of(content)}


def load_from_web(filename: str, map_location: object = None) -> dict:
    """The same of an address; in distributed training one process of a machine downloads it for the others.

    Raises ValueError as `load_from_file` does, and if it cannot be downloaded.
    """
    if get_local_rank() != 0:
        barrier()
    try:
        file = download_cached_file(filename, check_hash=False)
    except OSError as e:
        raise ValueError(f'{filename} could not be downloaded ({type(e).__name__}: {e}).') from e
    finally:
        if get_local_rank() == 0:
            barrier()
    return load_from_file(file)


def check_resumable(filename: str | Path) -> None:
    """Raise ValueError unless a file can be read and holds what a Runner resumes from."""
    content = load_from_file(str(filename))
    missing = [f"'{name}' in 'meta'" for name in ('epoch', 'iter') if name not in content['meta']]
    missing += [repr(name) for name in ('message_hub', 'optimizer') if name not in content]
    if missing:
        raise ValueError(f"{filename} holds no state of a training that could go on, but weights alone (no {', '.join(missing)}); "
                         'start from them with --cfg-options load_from=FILE.')


def read_content(source: str | Path) -> object:
    """All that is in a checkpoint: a path, `hf-hub:ORG/REPO[/FILE]`, or an address that mmengine can load."""
    if '://' in str(source):
        return CheckpointLoader.load_checkpoint(str(source), map_location='cpu', logger='current')
    return read_file(local_file(source))
