"""The `vitzoo` command as a whole: what it imports, what it prints, how it ends."""
import builtins
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import zoo

from vitzoo_cli import main
from vitzoo_cli.app import COMMANDS
from vitzoo_cli.output import Output

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)


def test_parsing_imports_nothing_heavy():
    done = run('-c', 'import sys; from vitzoo_cli.app import make_parser; make_parser().parse_args(["list"]); '
                     'print(sorted({"torch", "timm", "vitzoo", "numpy", "PIL", "rich"} & set(sys.modules)))')
    assert done.stdout == '[]\n', done.stderr


@pytest.mark.parametrize('module', ['vitzoo', 'vitzoo_cli'])
def test_as_a_module(module):
    done = run('-m', module, 'predict', '--help')
    assert done.returncode == 0 and done.stdout.startswith('usage: vitzoo predict')


def test_version(capsys):
    assert main(['--version']) == 0
    assert re.fullmatch(r'vitzoo \d+\.\d+\.\d+\S*\n', capsys.readouterr().out)


WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.split('.')[0] in {words} else self.finder.find_spec(name, *args)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from vitzoo_cli import main
sys.exit(main())
"""


@pytest.mark.parametrize('missing, arguments, status', [
    (('torch', 'timm'), ['--version'], 0), (('torch',), ['list'], 1), (('timm',), ['list'], 1), (('torch',), ['train', 'x.py'], 1),
    (('torch', 'timm'), ['info', 'svit_micro'], 1)])
def test_without_pytorch_it_says_what_is_missing(missing, arguments, status):
    done = run('-c', WITHOUT.replace('{words}', repr(missing)), *arguments)
    assert done.returncode == status and bool(re.match(r'vitzoo \d', done.stdout)) == (status == 0)
    last = done.stderr.splitlines()[-1]
    assert re.match(f'vitzoo: there is no {" and ".join(missing)}|vitzoo: there is no {missing[-1]}', last) and 'pip install' in last
    assert 'Traceback' not in done.stderr


def test_without_a_command_it_says_which_there_are(capsys):
    assert main([]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize('command', COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, '--help'])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert '--json' in out and '%(default)' not in out


@pytest.mark.parametrize('arguments', [['nonsense'], ['info'], ['info', 'svit_micro', '--size', '0x3'], ['predict', 'x.png'],
                                       ['show', 'svit_micro'], ['show', 'svit_micro', 'x.png', '--option', 'r']])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and 'usage: vitzoo' in capsys.readouterr().err


def test_a_value_error_is_one_line_and_debug_says_more(capsys):
    assert main(['info', 'svit_smal']) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vitzoo: unknown model 'svit_smal'; did you mean svit_small") and captured.err.count('\n') == 1
    assert captured.out == ''
    assert main(['info', 'svit_smal', '--debug']) == 2
    assert 'Traceback' in capsys.readouterr().err


def test_other_errors_end_with_1(monkeypatch, capsys):
    def fail(*args):
        raise KeyError('weights')
    monkeypatch.setattr('vitzoo_cli.list.run', fail)
    assert main(['list']) == 1
    assert capsys.readouterr().err == "vitzoo: KeyError: 'weights' (--debug shows where it came from)\n"


def test_list(capsys):
    assert main(['list', 'svit_*', '--json']) == 0
    models = {m['name']: m for m in json.loads(capsys.readouterr().out)}
    assert models['svit_small']['params'] == 25_495_624
    assert set(models['svit_small']['tags']) == {'in1k', 'in1k_384'}
    assert models['svit_small']['tags']['in1k_384']['input_size'] == [3, 384, 384]
    assert models['svit_small']['macs'] == 4_340_363_648 and models['svit_small']['top1'] == 83.6
    assert models['svit_micro']['top1'] is None
    assert main(['list', 'resnet*']) == 2


def test_list_is_a_line_a_model_of_80_columns_and_builds_none(monkeypatch, capsys):
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: pytest.fail('built a model'))
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    monkeypatch.setenv('COLUMNS', '80')
    assert main(['list']) == 0
    lines = re.sub(r'\x1b\[[\d;]*m', '', capsys.readouterr().out).splitlines()
    rows = {cells[0]: ' '.join(cells[1:]) for cells in (line.replace('│', ' ').split() for line in lines if line.startswith('│'))}
    assert set(rows) == set(zoo.NAMES) and max(map(len, lines)) <= 80
    assert rows['svit_small'] == '25.5 M 4.34 224 83.6 by hand' and rows['stvit_small'] == '49.6 M 5.63 224 82.7 download'
    assert rows['svit_micro'] == '1.6 M 0.31 224 - -'
    assert main(['list', 'micro']) == 0
    out = capsys.readouterr().out
    assert 'svit_micro' in out and 'svit_small' not in out


def test_info(capsys):
    assert main(['info', 'svit_micro', '--size', '128x160', '--json']) == 0
    info = json.loads(capsys.readouterr().out)
    assert info['input_size'] == [3, 128, 160] and 0 < info['macs'] < 1e9
    assert info['stages'] == [{'channels': s['num_chs'], 'stride': s['reduction']} for s in timm.create_model('svit_micro').feature_info]
    assert main(['info', 'svit_small.in1k_384']) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ('25,495,624', '3x384x384', 'arxiv.org/abs/2211.11167', 'drive.google', 'stride 32: 512'))
    assert main(['info', 'svit_small.nonsense']) == 2
    assert 'in1k' in capsys.readouterr().err


def test_info_says_where_another_function_runs(capsys):
    assert main(['info', 'stvit_micro']) == 0
    assert 'at 224x224' in (out := capsys.readouterr().out) and "form='dense'" in out
    assert main(['info', 'svit_micro']) == 0
    assert 'another function' not in capsys.readouterr().out


def test_info_on_a_model_of_timm(capsys):
    assert main(['info', 'swin_tiny_patch4_window7_224', '--json']) == 0
    info = json.loads(capsys.readouterr().out)
    assert info['fixed_input_size'] and any(where.startswith('hf-hub:timm/') for where in info['weights'].values())


def test_plain_text_without_rich(monkeypatch, capsys):
    real = builtins.__import__
    monkeypatch.setattr(builtins, '__import__', lambda name, *a, **k: (_ for _ in ()).throw(ImportError(name)) if name.startswith('rich')
                        else real(name, *a, **k))
    output = Output()
    output.table('two things', ('name', 'number'), [('first', 1), ('a second', 22)], right=('number',))
    assert capsys.readouterr().out == 'two things\nname      number\nfirst          1\na second      22\n'
    assert list(output.progress([1, 2, 3], 'counting')) == [1, 2, 3]


def test_json_silences_the_rest(capsys):
    output = Output(as_json=True)
    output.table('title', (), [(1, 2)])
    assert list(output.progress('ab', 'letters')) == ['a', 'b']
    output.json([1])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [1] and captured.err == ''
