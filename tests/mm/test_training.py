"""Training, resuming, distributed training and inference through the shipped configs, on a few digit scenes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.runner import Runner  # noqa: E402

from vitzoo.mm import config_path, setup  # noqa: E402

ROOT = Path(__file__).parents[2]
CLASSIFICATION = 'classification/svit_micro_digits'
SEGMENTATION = 'segmentation/fpn_svit_micro_digits'


def train(name, work_dir, **options):
    cfg = setup(config_path(name), work_dir=work_dir, seed=0, cfg_options={
        'experiment_name': work_dir.name, 'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 2, **options})
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def scalars(work_dir):
    """Logged values by iteration, of all runs in the folder; later runs win. Validation is at the key 'val'."""
    rows = {}
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            rows[row['step'] if 'loss' in row else 'val'] = row
    return rows


def test_classifier(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich takes the output for a terminal and shows its bar
    runner = train(CLASSIFICATION, tmp_path / 'classifier', **{'train_cfg.max_iters': 20, 'train_dataloader.batch_size': 16})
    shown = capsys.readouterr().out
    assert 'training, loss' in shown and '20/20' in shown

    rows = scalars(tmp_path / 'classifier')
    assert rows[20]['loss'] < rows[10]['loss']
    runner.model.eval()
    with torch.inference_mode():
        right = [p == t for x, t in runner.val_dataloader.dataset for p in runner.model(x[None]).argmax(1).tolist()]
    assert rows['val']['top1'] == pytest.approx(100 * sum(right) / len(right), abs=3)  # one image may hang on a rounding


def test_progress_bar_is_for_terminals(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('FORCE_COLOR', raising=False)
    train(CLASSIFICATION, tmp_path / 'classifier')
    assert 'training, loss' not in capsys.readouterr().out


HOOKS = '''
import os
import signal
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook


class Kill(Hook):
    """The power fails in iteration 7, after the checkpoint of iteration 6."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 6:
            os.kill(os.getpid(), signal.SIGKILL)


class Dump(Hook):
    def after_train(self, runner):
        torch.save(dict(runner.model.module.named_parameters()), os.path.join(runner.work_dir, f'rank{get_rank()}.pth'))
'''


@pytest.fixture
def run(digits, tmp_path):
    (tmp_path / 'hooks_of_the_test.py').write_text(HOOKS)
    path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get('PYTHONPATH', '')])
    bins = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])

    def run(*command):
        return subprocess.run([str(c) for c in command], env={**os.environ, 'PYTHONPATH': path, 'PATH': bins, 'OMP_NUM_THREADS': '1'},
                              cwd=tmp_path, capture_output=True, text=True)
    return run


@pytest.mark.slow
def test_killed_training_resumes(run, tmp_path):
    options = ['--cfg-options', 'train_cfg.max_iters=9', 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1',
               'default_hooks.checkpoint.interval=3', 'log_processor.window_size=1', 'model.decode_head.dropout_ratio=0']
    command = [sys.executable, ROOT / 'tools' / 'train.py', config_path(SEGMENTATION), '--seed', 0, '--work-dir']
    whole = run(*command, tmp_path / 'whole', *options)
    assert whole.returncode == 0, whole.stderr
    killed = run(*command, tmp_path / 'parts', *options, 'custom_hooks.0.type=hooks_of_the_test.Kill')
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / 'parts' / 'iter_6.pth').is_file() and 7 not in scalars(tmp_path / 'parts')
    resumed = run(*command, tmp_path / 'parts', '--resume', *options)
    assert resumed.returncode == 0, resumed.stderr

    expected, got = scalars(tmp_path / 'whole'), scalars(tmp_path / 'parts')
    assert set(expected) == set(got) == {*range(1, 10), 'val'}
    for step in range(1, 10):
        assert got[step]['loss'] == pytest.approx(expected[step]['loss'], rel=0.02)
    assert got[7]['base_lr'] == pytest.approx(expected[7]['base_lr'])

    tested = run(sys.executable, ROOT / 'tools' / 'test.py', config_path(SEGMENTATION), tmp_path / 'parts' / 'iter_9.pth',
                 '--work-dir', tmp_path / 'test')
    assert tested.returncode == 0, tested.stderr
    assert f"mIoU: {got['val']['mIoU']:.4f}" in tested.stdout + tested.stderr


@pytest.mark.slow
def test_two_processes_end_with_equal_weights(run, tmp_path):
    result = run(ROOT / 'tools' / 'dist_train.sh', config_path('segmentation/upernet_svit_micro_digits'), 2,
                 '--work-dir', tmp_path / 'work', '--seed', 0, '--cfg-options', 'train_cfg.max_iters=3', 'train_dataloader.batch_size=2',
                 'custom_hooks.0.type=hooks_of_the_test.Dump')
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / 'work' / f'rank{rank}.pth', weights_only=True) for rank in range(2))
    assert first and first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())
    start = setup(config_path('segmentation/upernet_svit_micro_digits'))
    assert start.model.decode_head.norm_cfg.type == 'SyncBN'  # what the processes had to replace
