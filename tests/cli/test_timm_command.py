"""`vitzoo timm SCRIPT ...`: somebody else's script, with our models registered, as Python would run it."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitzoo_cli import main

ROOT = Path(__file__).parents[2]
SCRIPT = '''
import argparse
import sys
import timm
import neighbour  # in the script's folder, as for Python

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--model')
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    print(timm.create_model(args.model, num_classes=neighbour.classes).num_classes, args.json, sys.argv[1:])
    sys.exit(3)
'''
DISTRIBUTED = '''
import timm
import torch
import torch.distributed as dist

dist.init_process_group('gloo')
model = torch.nn.parallel.DistributedDataParallel(timm.create_model('cas_vit_micro', num_classes=2))
model(torch.randn(2, 3, 64, 64)).sum().backward()
print(f'process {dist.get_rank()} of {dist.get_world_size()}', flush=True)
dist.destroy_process_group()
'''


@pytest.fixture
def script(tmp_path):
    def write(text=SCRIPT, name='script.py'):
        (tmp_path / 'neighbour.py').write_text('classes = 7\n')
        path = tmp_path / name
        path.write_text(text)
        return path
    return write


def run(*arguments, cwd=None):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run([sys.executable, '-m', *map(str, arguments)], cwd=cwd, env={**os.environ, 'PYTHONPATH': path},
                          capture_output=True, text=True)


def test_script_gets_its_arguments_its_folder_and_its_status(script, tmp_path):
    done = run('vitzoo', 'timm', script(), '--model', 'svit_micro', '--json')
    assert (done.returncode, done.stdout) == (3, "7 True ['--model', 'svit_micro', '--json']\n"), done.stderr


@pytest.mark.slow
def test_module(script, tmp_path):
    script()
    done = run('vitzoo', 'timm', '-m', 'script', '--model', 'svit_micro', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "7 False ['--model', 'svit_micro']\n"), done.stderr


def test_its_errors_are_shown_whole(script):
    done = run('vitzoo', 'timm', script('import timm\n\ntimm.create_model("nothing")\n'))
    assert done.returncode == 1 and 'Traceback' in done.stderr and 'script.py", line 3' in done.stderr


def test_no_such_script(capsys):
    assert main(['timm', 'trian.py']) == 2
    assert 'trian.py: no such file' in capsys.readouterr().err


@pytest.mark.slow
def test_under_torchrun(script):
    done = run('torch.distributed.run', '--nproc_per_node', '2', '-m', 'vitzoo', 'timm', script(DISTRIBUTED))
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == ['process 0 of 2', 'process 1 of 2']
