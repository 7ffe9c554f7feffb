"""Pickles, read as data: what they ask for is looked at before it is made, and nothing is executed."""
import argparse
import io
import mmap as memory
import os
import pickle
import pickletools
import re
import threading
import zipfile
from collections import OrderedDict, deque

import torch

from .words import one_line, shown

# What published training scripts stored beside the weights. Both load as inert containers. Registered as pairs, they are entries of our own
# in torch's list, which stay when others register and withdraw the class itself, as timm does at each file.
INERT_GLOBALS = [(argparse.Namespace, 'argparse.Namespace'), (OrderedDict, 'yacs.config.CfgNode')]
# What torch admits although a few bytes of it may ask for any amount of memory. No checkpoint needs them.
COSTLY = (
    'builtins.bytearray', 'torch._utils._rebuild_device_tensor_from_cpu_tensor', 'torch._utils._rebuild_device_tensor_from_numpy')

# What the tensors of any checkpoint are made of.
_PLAIN = re.compile(r'(collections|torch|torch\._\w+|torch\.(nn\.parameter|storage|serialization))\.\w+')

_registering = threading.Lock()


def load_pickle(path: str, mmap: bool = False) -> object:
    """The content of a file of `torch.save`, new or old format, by torch's restricted unpickler.

    mmap: leave tensors in the file until they are used (new format).

    Raises UnpicklingError on objects that are no data, and whatever torch raises on a damaged file.
    """
    _admit_inert_globals()
    with open(path, 'rb') as file:
        is_zip = file.read(4) == b'PK\x03\x04'
    if is_zip:
        _check_archive(path)
    costly = [name for name in requested_objects(path) if name in COSTLY]
    if costly:
        raise pickle.UnpicklingError(f'{costly[0]} is not admitted')
    # said in so many words, since an environment variable of torch's decides where nothing is said
    return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap and is_zip)


def _admit_inert_globals() -> None:
    """Register `INERT_GLOBALS` with torch for good: to withdraw them would take them from another thread in the middle of a file."""
    with _registering:
        known = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals([entry for entry in INERT_GLOBALS if entry not in known])


def _check_archive(path: str) -> None:
    """Raise ValueError unless an archive is as `torch.save` writes it, which compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith('/constants.pkl') for entry in entries):
        raise ValueError('it is a TorchScript program, not a state dict')
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > os.path.getsize(path):
        raise ValueError('its archive is compressed, which torch.save never does')


def requested_objects(path: str) -> list[str]:
    """Names of the classes and functions that a pickle asks for, found without making any; if it is damaged, those before the damage."""
    names, strings = [], deque(maxlen=2)
    try:
        stream = _pickled(path)
        while True:  # the old format has several in a row, and then bytes
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ('GLOBAL', 'INST'):
                    names.append(argument.replace(' ', '.', 1))
                elif opcode.name == 'STACK_GLOBAL':  # of newer protocols, which torch refuses anyway
                    names.append('.'.join(strings))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # the end, or damage, which torch finds as well and says so
        return [re.sub(r'^__builtin__\.', 'builtins.', name) for name in dict.fromkeys(names)]


def _pickled(path: str) -> io.BytesIO | memory.mmap:
    """What describes the structure of a file's content, as a stream."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(next(name for name in archive.namelist() if name.endswith('data.pkl'))))
    with open(path, 'rb') as file:
        return memory.mmap(file.fileno(), 0, access=memory.ACCESS_READ)


def explain_refusal(path: str, e: pickle.UnpicklingError) -> str:
    """What a refused file holds, and what can be done, in one line."""
    names, message = requested_objects(path), str(e)
    admitted = {x[1] if isinstance(x, tuple) else f'{x.__module__}.{x.__qualname__}' for x in torch.serialization.get_safe_globals()}
    blamed = [name for name in names if name.removeprefix('builtins.') in message]  # the first of them alone, by torch
    blamed += [name for name in names if not _PLAIN.fullmatch(name) and name not in {*admitted, *blamed}]
    if any(name.startswith('mmengine.') for name in names):
        advice = "import vitzoo.mm first: it admits the log that mmengine's Runner puts beside the weights."
    else:
        advice = 'Have its author save the state dict alone, or convert it in a place where it is trusted.'
    reason = f'objects that are no weights, {", ".join(map(shown, blamed[:3]))}' if blamed else \
        f'more than weights, or is no checkpoint ({one_line(e)})'
    return f'{path} was refused: it holds {reason}. Nothing in it was executed. {advice}'
