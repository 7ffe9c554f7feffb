"""The code in the README and the docs runs. Blocks marked `py` instead of `python` are parts of something, and say so above. The commands
there exist, with their options."""
import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

from vitzoo_cli.app import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
EXTRAS = {'export_onnx': 'onnxruntime', 'digit_scenes': 'sklearn', 'mmengine': 'mmseg', 'vitzoo.mm': 'mmdet'}


ELSEWHERE = ('clients.md',)  # its recipes need a library each, and run by themselves: tests/clients
LONG = ('bench.md', 'deploy.md', 'export.md', 'vit_backbones.md')  # pages whose code takes long


@pytest.mark.parametrize('page', [pytest.param(page, marks=pytest.mark.slow if page.name in LONG else ())
                                  for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        for word, module in EXTRAS.items():
            if word in block:
                pytest.importorskip(module)
        exec(compile(block, page.name, 'exec'), names)


def test_figures_are_drawn(tmp_path):
    """The path from a model to a page's picture, by the one figure that needs no training."""
    pytest.importorskip('sklearn')
    figures = runpy.run_path(str(ROOT / 'docs' / 'figures' / 'token_maps.py'))
    assert {(ROOT / 'docs' / f'{family}.png').exists() for family in figures['FIGURES']} == {True}
    figures['draw'](figures['FIGURES']['davit'], tmp_path / 'x.png')
    with Image.open(tmp_path / 'x.png') as drawn, Image.open(ROOT / 'docs' / 'davit.png') as shown:
        assert drawn.size == shown.size


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding='utf-8')
    for target in re.findall(r'\]\((?!https?:)([^)#]+)\)', text):
        assert (page.parent / target).exists(), f'{page.name} links to {target}'
    for path in re.findall(r'\b((?:configs|tools|tests|requirements)/[\w./-]+\.\w+)', text):
        assert (ROOT / path).exists(), f'{page.name} names {path}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_unrun_code_says_why(page):
    for before in re.findall(r'(.*)\n```py\n', page.read_text(encoding='utf-8')):
        assert before.startswith('<!-- not run: '), f'{page.name}: a block that is not run lacks its reason'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_exist(page, capsys):
    """A block that is not checked says why above: <!-- not checked: ... -->"""
    text = page.read_text(encoding='utf-8')
    for before, block in re.findall(r'([^\n]*)\n```\w*\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
        if before.startswith('<!-- not checked: '):
            continue
        for line in re.findall(r'^vitzoo (?!=)(.+)$', block.replace('\\\n', ' '), re.MULTILINE):
            try:
                make_parser().parse_args(shlex.split(line, comments=True))
            except SystemExit as end:  # by 0 after --help
                assert not end.code, (f'{page.name}: vitzoo {line}: {capsys.readouterr().err.splitlines()[-1]}')
