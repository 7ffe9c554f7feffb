"""How many threads a long computation on CPUs takes."""
import os
import subprocess
import sys

import pytest

from vitzoo_cli import threads

NAMES = 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets what the machine says: cores, how many of them are idle, and the quota of the container."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def set_machine(cores, idle, quota='max'):
        before, after = 'cpu  10 0 10 80 0 0 0 0 0 0\n', f'cpu  {10 + 100 * (cores - idle)} 0 10 {80 + 100 * idle} 0 0 0 0 0 0\n'
        (tmp_path / 'stat').write_text(before)
        (tmp_path / 'cpu.max').write_text(f'{quota} 100000\n')
        monkeypatch.setattr(threads, 'STAT', tmp_path / 'stat')
        monkeypatch.setattr(threads, 'QUOTA', tmp_path / 'cpu.max')
        monkeypatch.setattr(os, 'cpu_count', lambda: cores)
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)), raising=False)
        monkeypatch.setattr(threads.time, 'sleep', lambda seconds: (tmp_path / 'stat').write_text(after))
    yield set_machine
    for name in NAMES:  # set by what is tested
        os.environ.pop(name, None)


@pytest.mark.parametrize('cores, idle, quota, expected', [
    (2, 2, 'max', '2'), (2, 1, 'max', '1'), (2, 0, 'max', '1'), (16, 12, 'max', '12'), (64, 64, '200000', '2'), (64, 64, '50000', '1')])
def test_threads_are_the_idle_cores(machine, cores, idle, quota, expected):
    machine(cores, idle, quota)
    threads.choose_threads()
    assert (os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY']) == (expected, 'PASSIVE')


def test_what_the_user_set_stays(machine, monkeypatch):
    machine(4, 4)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    threads.choose_threads()
    assert (os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY']) == ('3', 'ACTIVE')


def test_machines_that_say_nothing(machine, monkeypatch, tmp_path):
    machine(4, 1)
    monkeypatch.setattr(threads, 'STAT', tmp_path / 'none')
    monkeypatch.setattr(threads, 'QUOTA', tmp_path / 'none')
    threads.choose_threads()
    assert os.environ['OMP_NUM_THREADS'] == '4'


@pytest.mark.parametrize('module, arguments', [
    ('demo', ['demo', '--preset', 'huge']), ('configs', ['train', 'none.py']), ('configs', ['test', 'none.py', 'none.pth'])])
def test_they_are_chosen_before_torch_is_imported(module, arguments, tmp_path):
    code = ('import os, sys, vitzoo_cli.threads as threads\n'
            'def chosen():\n    assert "torch" not in sys.modules\n    print("chosen")\n    sys.exit(0)\n'
            f'import vitzoo_cli.{module} as command\ncommand.choose_threads = chosen\n'
            'from vitzoo_cli import main\nmain(sys.argv[1:])')
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == 'chosen\n', done.stderr
