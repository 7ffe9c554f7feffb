"""A wheel is enough: what it holds, and what it does in a folder without the clone, in an environment of its own that sees the installed
packages."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('setuptools')
ROOT = Path(__file__).parents[1]
CONFIG = 'detection/mask-rcnn_svit_micro_digits'
PARTS = ['vitzoo', 'vitzoo_cli', 'vitzoo_runtime', 'configs', 'tools', 'setup.py', 'pyproject.toml', 'model-index.yml',
         'README.md', 'LICENSE']


def built(kind, source):
    """The `wheel` or `sdist` of a folder, made by the tool that pip asks, without a network."""
    command = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', command], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / 'dist' / done.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of what is packed, links as links."""
    folder = tmp_path_factory.mktemp('clone')
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope='module')
def wheel(clone):
    return built('wheel', clone)


@pytest.mark.slow
def test_wheel_and_source_archive_hold_the_same(clone, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        assert not any((info.external_attr >> 16) & 0o170000 == 0o120000 for info in file.infolist()), 'a link leads out of a wheel'
    shipped = {f'vitzoo/.mim/{path.relative_to(ROOT)}' for folder in ('configs', 'tools') for path in (ROOT / folder).rglob('*')
               if path.suffix in ('.py', '.yml') and (folder == 'configs' or path.name in ('train.py', 'test.py'))}
    assert len(shipped) > 200
    assert shipped | {'vitzoo/.mim/model-index.yml', 'vitzoo/.mim/tools/dist_train.sh', 'vitzoo/py.typed'} <= names
    with tarfile.open(built('sdist', clone)) as file:
        file.extractall(tmp_path, filter='data')
    source, = tmp_path.iterdir()
    with zipfile.ZipFile(built('wheel', source)) as file:
        assert set(file.namelist()) == names


@pytest.fixture(scope='module')
def anywhere(wheel, tmp_path_factory):
    """Runs a command with the wheel installed, in a folder without the clone."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=False)
    paths = {name: Path(sysconfig.get_path(name, 'venv', {'base': str(folder)})) for name in ('purelib', 'scripts')}
    # a line there puts a folder on the path without the start-up files in it: an editable vitzoo stays out
    (paths['purelib'] / 'installed.pth').write_text(sysconfig.get_path('purelib') + '\n')
    pip = [sys.executable, '-m', 'pip', '--python', paths['scripts'] / 'python']
    subprocess.run([*pip, 'install', '--quiet', '--no-index', '--no-deps', wheel], check=True)
    work = tmp_path_factory.mktemp('anywhere')
    env = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'DIGIT_SCENES')}

    def run(*command):
        done = subprocess.run([paths['scripts'] / command[0], *command[1:]], cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    run.folder, run.packages = work, paths['purelib']
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_train_and_test_without_the_clone(anywhere):
    pytest.importorskip('mmdet')
    pytest.importorskip('sklearn')
    pytest.importorskip('onnxscript')
    where = anywhere('python', '-c', f"import vitzoo.mm; print(vitzoo.mm.config_path('{CONFIG}'))")
    assert Path(where.strip()) == (anywhere.packages / 'vitzoo' / '.mim' / 'configs' / f'{CONFIG}.py').resolve()

    demo = json.loads(anywhere('vitzoo', 'demo', '--preset', 'micro', '--iterations', '2', '--json'))
    assert demo['onnx']['max_error'] < 1e-5 and Path(anywhere.folder, demo['files']['pictures']).is_file()

    (anywhere.folder / 'mine.py').write_text(f"_base_ = 'vitzoo::{CONFIG}.py'\ntrain_cfg = dict(max_iters=2)\n")
    trained = json.loads(anywhere('vitzoo', 'train', 'mine.py', '--json'))
    assert trained['checkpoint'] == 'work_dirs/mine/iter_2.pth' and (anywhere.folder / trained['checkpoint']).is_file()
    for words in ['vitzoo', 'test', CONFIG], ['python', '-m', 'vitzoo', 'test', f'vitzoo::{CONFIG}.py']:
        assert 'metrics' in json.loads(anywhere(*words, trained['checkpoint'], '--json'))
    found = anywhere('python', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'vitzoo', 'train', 'mine.py',
                     '--launcher', 'pytorch', '--work-dir', 'two', '--json')
    assert json.loads(found)['iterations'] == 2 and (anywhere.folder / 'two' / '1.console.log').is_file()
