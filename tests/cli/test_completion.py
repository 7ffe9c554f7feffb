"""What a shell is offered when it asks."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('argcomplete')
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('line, expected', [
    ('vitzoo comp', ['compare-reduction ']),
    ('vitzoo info svit_', ['svit_base', 'svit_large', 'svit_micro', 'svit_small']),
    ('vitzoo export --config detection/mask-rcnn_svit_micro_dig', ['detection/mask-rcnn_svit_micro_digits ']),
    ('vitzoo train mi', ['mine.py ']),
    ('vitzoo train mine.py --load', ['--load-from ']),
])
def test_completions(line, expected, tmp_path):
    (tmp_path / 'mine.py').touch()
    (tmp_path / 'mine.txt').touch()
    answer = tmp_path / 'answer'
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])), '_ARGCOMPLETE': '1',
           '_ARGCOMPLETE_STDOUT_FILENAME': str(answer), '_ARGCOMPLETE_IFS': '\n', 'COMP_LINE': line, 'COMP_POINT': str(len(line))}
    block = 'import sys\nfor name in "torch", "timm": sys.modules[name] = None\nfrom vitzoo_cli import main\nmain()'
    subprocess.run([sys.executable, '-c', block], cwd=tmp_path, env=env, check=True, timeout=60)
    assert sorted(answer.read_text().split('\n')) == expected
