"""`vitzoo train` and `vitzoo test`: what they show, what they keep, how they fail."""
import io
import json

import pytest
import timm
import torch

from vitzoo_cli import main
from vitzoo_cli.output import Output

pytest.importorskip('mmengine')
pytest.importorskip('sklearn')
from mmengine.config import Config  # noqa: E402

CLASSIFIER = 'classification/svit_micro_digits'


def test_a_classifier_from_a_name_to_its_evaluation(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(f"_base_ = 'vitzoo::{CLASSIFIER}.py'\ntrain_cfg = dict(max_iters=2, val_interval=1)\n")
    assert main(['train', 'mine.py', '--seed', '1', '--cfg-options', 'train_dataloader.batch_size=4']) == 0
    shown = capsys.readouterr()
    assert shown.out.count('validation after iteration') == 2 and 'before' in shown.out and 'top1' in shown.out
    assert 'vitzoo test mine.py work_dirs/mine/iter_2.pth' in shown.out
    assert shown.err.splitlines() == ['loading PyTorch and the model ...', '2 iterations; the log is work_dirs/mine/console.log']
    log = (tmp_path / 'work_dirs' / 'mine' / 'console.log').read_text()
    assert all(text in log for text in ('mmengine - INFO', 'batch_size=4', 'Iter(val)', 'Saving checkpoint'))

    assert main(['test', f'vitzoo::{CLASSIFIER}', 'work_dirs/mine/iter_2.pth', '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report['metrics']) == {'top1', 'top5'} and 0 <= report['metrics']['top1'] <= 100
    assert report['work_dir'] == 'work_dirs/svit_micro_digits'


def test_numbers_for_machines(digits, tmp_path, capsys):
    command = ['train', CLASSIFIER, '--work-dir', str(tmp_path / 'work'), '--json', '--cfg-options', 'train_cfg.max_iters=1']
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['iterations'] == 1 and report['checkpoint'].endswith('work/iter_1.pth')
    assert [v['iteration'] for v in report['validations']] == [1] and 'top1' in report['validations'][0]['metrics']


def test_what_training_starts_from(digits, tmp_path, capsys):
    """Weights, precision and rate are as they were asked for."""
    model = timm.create_model('svit_micro', num_classes=10)
    torch.save({f'model.{key}': value for key, value in model.state_dict().items()}, tmp_path / 'start.pth')
    common = ['train', CLASSIFIER, '--work-dir', str(tmp_path / 'work'), '--json', '--cfg-options', 'train_cfg.max_iters=1',
              'experiment_name=start']  # mmengine has one logger for all runs that begin in a second, with the streams of the first
    asked = ['--load-from', str(tmp_path / 'start.pth'), '--amp', '--auto-scale-lr']
    assert main([*common, *asked]) == 2 and 'auto_scale_lr.base_batch_size' in capsys.readouterr().err
    assert main([*common, 'auto_scale_lr.base_batch_size=8', *asked]) == 0
    assert ('--amp: there is no GPU' in capsys.readouterr().err) != torch.cuda.is_available()
    cfg = Config.fromfile(tmp_path / 'work' / 'svit_micro_digits.py')
    assert cfg.load_from == str(tmp_path / 'start.pth') and cfg.auto_scale_lr.enable
    log = (tmp_path / 'work' / 'console.log').read_text()
    assert 'LR is set based on batch size of 8' in log and f'Load checkpoint from {tmp_path / "start.pth"}' in log

    torch.save(model.state_dict(), tmp_path / 'classifier.pth')
    capsys.readouterr()
    assert main(['train', 'detection/retinanet_svit_micro_digits', '--load-from', str(tmp_path / 'classifier.pth')]) == 2
    assert 'init_cfg' in capsys.readouterr().err


@pytest.mark.parametrize('config, advice', [
    (CLASSIFIER, 'python -m vitzoo.datasets.digit_scenes --out data/digit_scenes makes the digit scenes'),
    ('detection/retinanet_svit_micro_digits', 'python -m vitzoo.datasets.digit_scenes --out data/digit_scenes makes the digit scenes'),
    ('detection/retinanet_svit_small_1x_coco', 'set train_dataloader.dataset.data_root'),
    ('classification/finetune_lookupvit_small_patch16', 'set train_dataloader.dataset.root')])
def test_data_that_are_not_there(config, advice, tmp_path, monkeypatch, capsys):
    for name in 'DIGIT_SCENES', 'IMAGES':
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(['train', config]) == 2
    err = capsys.readouterr().err
    assert 'no such folder' in err and advice in err and not list(tmp_path.iterdir())


def test_a_failure_is_in_the_log(digits, tmp_path, capsys):
    changes = ['train_cfg.max_iters=1', 'train_dataloader.sampler.type=Nothing']
    command = ['train', CLASSIFIER, '--work-dir', str(tmp_path), '--cfg-options', *changes]
    assert main(command) != 0
    err = capsys.readouterr().err
    assert f'vitzoo: more in {tmp_path / "console.log"}' in err and 'Traceback' not in err
    assert 'Traceback' in (tmp_path / 'console.log').read_text()


@pytest.mark.parametrize('words, message', [
    (['nowhere/svit_micro_digits.py'], 'no such file, and no config'),
    (['svit_micro_digits'], f'did you mean {CLASSIFIER},'),
    ([CLASSIFIER, '--cfg-options', 'train_cfg.max_iters'], 'expected KEY=VALUE'),
    ([CLASSIFIER, '--launcher', 'slurm'], 'needs GPUs')])
def test_refused_before_anything_is_written(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['train', *words]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_bar_makes_room():
    """What is printed while a bar shows has lines of its own: the bar is taken away before and drawn anew behind."""
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    output = Output()
    output.stdout = output.stderr = terminal = Terminal()
    with output.bar('training', 4) as advance:
        advance('first')
        output.note('a note')
        advance('second', steps=0)
        output.table('numbers', ('a', 'b'), [(1, 2)])
    before, _, after = terminal.getvalue().partition('a note\n')
    assert before.endswith('\x1b[2K') and '1/4' in before and '1/4' in after and '2/4' not in after and '\nnumbers' not in before
