"""Text that is safe to print, and processes that end tidily."""
import os
import signal
import subprocess
import sys
import time

import pytest

import vitzoo_runtime
from vitzoo_runtime.terminal import command, printable

ENVIRONMENT = {**os.environ, 'PYTHONPATH': os.path.dirname(os.path.dirname(vitzoo_runtime.__file__))}


@pytest.mark.parametrize('text, expected', [
    ('cat', 'cat'), ('Kätzchen 猫', 'Kätzchen 猫'), ('a\x1b[31mb', 'a\\x1b[31mb'), ('a\nb\r\t', 'a\\nb\\r\\t'), ('\udc80', '\\udc80'),
    ('\u202egnp', '\\u202egnp'), (3, '3')])
def test_what_a_terminal_would_obey_is_escaped(text, expected):
    assert printable(text) == expected


def test_what_is_long_is_cut():
    assert printable('x' * 121, 11) == 'xxxx...xxxx' and printable('x' * 120) == 'x' * 120
    assert len(printable('\0' * 10 ** 6)) <= 120


WRITER = """
import sys, time
from vitzoo_runtime.files import replacing
from vitzoo_runtime.terminal import command
with command(), replacing(sys.argv[1]) as temporary:
    temporary.write_text('half of')
    print('ready', flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(number, tmp_path):
    process = subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path / 'x.png')], env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b'ready\n' and len(os.listdir(tmp_path)) == 1
    process.send_signal(number)
    assert process.wait(30) == (128 + number if number != signal.SIGINT else -number)
    assert os.listdir(tmp_path) == []


def test_signals_are_as_they_were_afterwards_and_what_is_ignored_stays_so():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with command():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(SystemExit) as end:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
        assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, previous)
