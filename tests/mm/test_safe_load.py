"""Checkpoints of mmengine's Runner load and resume under weights_only=True, and nothing else does."""
import os
import zipfile

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.config import Config  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from mmengine.runner import Runner, load_checkpoint  # noqa: E402

from vitzoo.mm.safe_load import allow_runner_checkpoints, check_resumable, read_content  # noqa: E402
from vitzoo.weights import read_file  # noqa: E402


@pytest.fixture(autouse=True)
def torch_as_installed():
    """Each test begins with torch's own list of safe globals."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.fc(inputs).square().mean()}


def train(work_dir, iterations, resume=False):
    runner = Runner(
        model=Model(), work_dir=str(work_dir), resume=bool(resume),
        experiment_name=f'{work_dir.name}_{iterations}_{bool(resume)}', load_from=resume if isinstance(resume, str) else None,
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=[{'inputs': torch.rand(3)} for _ in range(8)],
                              sampler=dict(type='InfiniteSampler', shuffle=False), collate_fn=dict(type='default_collate')),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations), optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)),
        default_scope='mmengine', cfg=Config())
    runner.train()
    return runner


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runner')
    runner = train(folder, 4)
    return folder / 'iter_4.pth', runner


def test_a_runner_checkpoint_is_refused_without_and_loads_with(checkpoint):
    path, runner = checkpoint
    with pytest.raises(ValueError, match='HistoryBuffer'):
        load_checkpoint(Model(), str(path))
    allow_runner_checkpoints()
    allow_runner_checkpoints()
    model = Model()
    content = load_checkpoint(model, str(path))
    assert torch.equal(model.fc.weight, runner.model.fc.weight)
    losses = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(losses, HistoryBuffer) and len(losses.data[0]) == 4
    assert losses.statistics('mean') == losses.mean() and losses.current() == losses.data[0][-1]
    assert content['optimizer']['state'] and content['meta']['iter'] == 4


def test_resuming_continues_the_log(checkpoint):
    path, _ = checkpoint
    allow_runner_checkpoints()
    runner = train(path.parent, 6, resume=True)
    assert runner.iter == 6
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 6


def test_names_of_numpy_1(checkpoint, tmp_path):
    path, old = checkpoint[0], tmp_path / 'old.pth'
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                assert b'numpy._core.multiarray' in data or b'numpy.core.multiarray' in data
                data = data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
            target.writestr(name, data)
    allow_runner_checkpoints()
    assert load_checkpoint(Model(), str(old))['meta']['iter'] == 4


class Reduce:
    def __init__(self, function, *args):
        self.value = function, args

    def __reduce__(self):
        return self.value


@pytest.mark.parametrize('function, args', [
    (os.system, ('touch HERE',)),
    (eval, ('open("HERE", "w")',)),
    (getattr, (HistoryBuffer, '__init__')),
    (getattr, (HistoryBuffer, 'update')),
    (getattr, (torch.Tensor, 'mean')),
    (getattr, (HistoryBuffer(), 'mean')),
    (getattr, (HistoryBuffer, 'mean', 0)),
    (HistoryBuffer.mean, (HistoryBuffer([1.0], [1]),)),  # may be held, not called
], ids=lambda value: getattr(value, '__qualname__', None))
def test_malicious_files_stay_refused(function, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {}, 'bad': Reduce(function, *args)}, 'bad.pth')
    allow_runner_checkpoints()
    with pytest.raises(ValueError, match=r'^bad\.pth '):
        load_checkpoint(Model(), 'bad.pth')
    assert not (tmp_path / 'HERE').exists()


def test_real_getattr_is_never_allowed(checkpoint):
    allow_runner_checkpoints()
    allowed = [item[0] if isinstance(item, tuple) else item for item in torch.serialization.get_safe_globals()]
    assert getattr not in allowed and object not in allowed


def test_refusal_says_how_a_runner_checkpoint_is_admitted(checkpoint):
    path, runner = checkpoint
    with pytest.raises(ValueError, match=r'HistoryBuffer.*Nothing in it was executed\. import vitzoo\.mm first'):
        read_file(path)
    allow_runner_checkpoints()
    assert torch.equal(read_content(path)['state_dict']['fc.weight'], runner.model.fc.weight)


@pytest.mark.parametrize('data', [b'', b'not a checkpoint', b'PK\x03\x04' + b'\x00' * 64], ids=['empty', 'text', 'zip'])
def test_mmengine_reads_by_our_reader(data, tmp_path):
    """So that what is wrong with a file is said in one line, whoever reads it."""
    file = tmp_path / 'damaged.pth'
    file.write_bytes(data)
    for read in (lambda: load_checkpoint(Model(), str(file)), lambda: check_resumable(file), lambda: train(tmp_path, 6, str(file))):
        with pytest.raises(ValueError, match='damaged.pth') as refusal:
            read()
        assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('wrap', [
    lambda s: s, lambda s: {'model': s}, lambda s: {'state_dict': s, 'meta': 3}], ids=['bare', 'model', 'meta'])
def test_files_that_say_nothing_of_themselves(wrap, tmp_path):
    """The libraries ask every file for its 'meta'."""
    source, model = Model(), Model()
    torch.save(wrap(source.state_dict()), tmp_path / 'weights.pth')
    content = load_checkpoint(model, str(tmp_path / 'weights.pth'))
    assert content['meta'] == {} and torch.equal(model.fc.weight, source.fc.weight)
    with pytest.raises(ValueError, match=r"weights\.pth holds no state of a training .*'epoch' in 'meta'.*load_from=FILE"):
        check_resumable(tmp_path / 'weights.pth')


def test_a_runner_checkpoint_can_be_resumed_from(checkpoint):
    allow_runner_checkpoints()
    check_resumable(checkpoint[0])


def test_the_environment_does_not_switch_the_check_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save({'state_dict': {}, 'bad': Reduce(os.system, 'touch HERE')}, 'bad.pth')
    with pytest.raises(ValueError, match='Nothing in it was executed'):
        load_checkpoint(Model(), 'bad.pth')
    assert not (tmp_path / 'HERE').exists()


def test_files_of_the_web_are_read_so_too(tmp_path, monkeypatch):
    torch.save({'state_dict': {}, 'bad': Reduce(os.system, f'touch {tmp_path}/HERE')}, tmp_path / 'bad.pth')
    monkeypatch.setattr('vitzoo.mm.safe_load.download_cached_file', lambda url, **kwargs: str(tmp_path / url.rpartition('/')[2]))
    for scheme in 'http', 'https':
        with pytest.raises(ValueError, match='Nothing in it was executed'):
            load_checkpoint(Model(), f'{scheme}://somewhere/bad.pth')
    assert not (tmp_path / 'HERE').exists()
