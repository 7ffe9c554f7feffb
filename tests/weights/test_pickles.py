"""Pickles are read as data: by whichever thread, whatever others register with torch, whatever the environment says, and at little cost."""
import argparse
import io
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch

import vitzoo
from vitzoo.weights import read_file


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """As a training script wrote it, with its arguments."""
    path = tmp_path_factory.mktemp('pickles') / 'checkpoint.pth'
    torch.save({'model': timm.create_model('svit_micro').state_dict(), 'args': argparse.Namespace(lr=1.)}, path)
    return path


class Reduce:
    def __init__(self, function, *args):
        self.value = function, args

    def __reduce__(self):
        return self.value


class Mine:
    pass


def test_threads_do_not_disturb_each_other(checkpoint):
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(lambda _: read_file(checkpoint), range(60)))
    assert all(content['args'].lr == 1 for content in contents)


@pytest.mark.parametrize('registered', [argparse.Namespace, Mine, (Mine, 'some.Name')], ids=str)
def test_what_a_user_registered_stays(registered, checkpoint):
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.add_safe_globals([registered])
        read_file(checkpoint)
        assert registered in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_others_may_withdraw_what_they_registered(checkpoint):
    """timm registers and withdraws argparse.Namespace at each of its files."""
    before = torch.serialization.get_safe_globals()
    try:
        for withdraw in (lambda: timm.models.load_state_dict(str(checkpoint)), torch.serialization.clear_safe_globals):
            read_file(checkpoint)
            withdraw()
            assert read_file(checkpoint)['args'].lr == 1
    finally:
        torch.serialization.add_safe_globals(before)


def test_the_environment_does_not_switch_the_check_off(tmp_path, monkeypatch):
    path = tmp_path / 'bad.pth'
    torch.save({'model': Reduce(Path.touch, tmp_path / 'executed')}, path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(ValueError, match='Nothing in it was executed'):
        vitzoo.load_checkpoint(timm.create_model('svit_micro'), path)
    assert not (tmp_path / 'executed').exists()
    torch.load(path)
    assert (tmp_path / 'executed').exists(), 'the attack itself does not work'


@pytest.mark.parametrize('content, named', [
    (Reduce(eval, '1'), 'builtins.eval'), (Reduce(os.getcwd), 'posix.getcwd'), (Reduce(Path.touch, Path('x')), 'pathlib.'),
    (torch.nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'), (Mine(), f'{__name__}.Mine'),
    (Reduce(bytearray, 2 ** 32), 'builtins.bytearray'),
], ids=lambda x: x if isinstance(x, str) else type(x).__name__)
@pytest.mark.parametrize('form', ['new', 'old', *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_refusals_name_what_they_refuse(content, named, form, tmp_path):
    path, content = tmp_path / 'bad.pth', {'model': {'a': torch.zeros(1)} if form in ('new', 'old') else {}, 'other': content}
    if form in ('new', 'old'):
        torch.save(content, path, _use_new_zipfile_serialization=form == 'new')
    else:
        path.write_bytes(pickle.dumps(content, form))
    with pytest.raises(ValueError) as refusal:
        read_file(path)
    message = str(refusal.value)
    assert named in message and 'Nothing in it was executed' in message
    assert message.isprintable() and 'weights_only' not in message and 'add_safe_globals' not in message and len(message) < 600


def test_torchscript_and_tar_are_refused_in_one_line(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / 'script.pth')
    import tarfile
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'), io.BytesIO())
    for name, message in (('script.pth', 'TorchScript'), ('old.pth', 'tar')):
        with pytest.raises(ValueError, match=message) as refusal:
            read_file(tmp_path / name)
        assert str(refusal.value).isprintable() and 'weights_only=False' not in str(refusal.value)


def test_compressed_archives_are_refused(checkpoint, tmp_path):
    """A hundred megabytes of zeros fit into a hundred kilobytes."""
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match='its archive is compressed'):
        read_file(path)


def test_a_mapped_file_is_not_written_to(checkpoint):
    """Neither by loading nor by what is done with the model afterwards."""
    before = checkpoint.read_bytes()
    model = timm.create_model('svit_micro', in_chans=1)
    vitzoo.load_checkpoint(model, checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert checkpoint.read_bytes() == before
