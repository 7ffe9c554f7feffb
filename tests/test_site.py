"""The site: all pages are in its navigation and fit its columns, what it takes from elsewhere is there, and it is built strictly."""
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import yaml

import vitzoo

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.glob('*.md'))
GENERATED = {'changelog.md'}  # by tools/mkdocs_hooks.py
LONGEST = 118  # characters of a code line that fit beside both columns of navigation at 1440 pixels, as measured in Chromium


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags are mkdocs' own."""


Loader.add_multi_constructor('!', lambda loader, tag, node: None)
SITE = yaml.load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'), Loader)
HOOKS = runpy.run_path(str(ROOT / 'tools' / 'mkdocs_hooks.py'))


def leaves(tree):
    if isinstance(tree, str):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(branch)]


def code_lines(text):
    for block in re.findall(r'^```\w*\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()


def test_each_page_is_in_the_navigation_once():
    assert sorted(leaves(SITE['nav'])) == sorted([page.name for page in PAGES] + [*GENERATED])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_no_code_line_scrolls(page):
    long = [line for line in code_lines(page.read_text(encoding='utf-8')) if len(line) > LONGEST]
    assert not long, f'{page.name}: break code lines of more than {LONGEST} characters'


def test_pages_include_what_the_readme_has():
    text = HOOKS['on_page_markdown']((DOCS / 'index.md').read_text(encoding='utf-8'))
    assert 'included here' not in text and "pip install -e '.[all]'" in text
    assert text.count('\n| [`') >= 10 and '](svit.md)' in text and '](docs/' not in text
    with pytest.raises(ValueError, match='no table in the section "## Licence"'):
        HOOKS['section']('Licence', table=True)


def test_reference_has_all_that_is_public():
    text = (DOCS / 'api.md').read_text(encoding='utf-8')
    shown = dict(re.findall(r'^::: ([\w.]+)\n    options: \{heading: ([\w.]+)', text, re.MULTILINE))
    assert set(shown.values()) >= {f'vitzoo.{name}' for name in vitzoo.__all__ if name != '__version__'}
    if find_spec('mmdet'):
        assert set(shown.values()) >= {f'vitzoo.mm.{name}' for name in importlib.import_module('vitzoo.mm').__all__}
    for path, heading in shown.items():
        if '.mm.' in path and not find_spec('mmdet'):
            continue
        assert resolve(path).__module__ == path.rpartition('.')[0], f'{path} is defined elsewhere, where the site will look for it'
        if '.' not in heading:  # a method of token reduction, by the name that reduce_tokens takes
            assert vitzoo.reduction.METHODS[heading] is resolve(path)
        else:
            assert resolve(heading) is resolve(path) and resolve(path).__doc__, heading


def resolve(path):
    room, _, name = path.rpartition('.')
    return getattr(importlib.import_module(room), name)


def test_licences_are_those_of_the_models():
    rows = re.findall(r'^\| (`\w+`(?:, `\w+`)*) \| (.+) \|$', (DOCS / 'faq.md').read_text(encoding='utf-8'), re.MULTILINE)
    stated = {name: licence for names, licence in rows for name in re.findall(r'`(\w+)`', names)}
    models = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('vitzoo.')]
    published = {name: timm.get_pretrained_cfg(name) for name in models}
    assert stated == {name: cfg.license for name, cfg in published.items() if cfg.has_weights or cfg.origin_url}


def test_counters_differ_as_the_page_says():
    fvcore = pytest.importorskip('fvcore.nn')
    from torch.utils.flop_counter import FlopCounterMode

    from vitzoo.profiling import fvcore_handles
    model, image = timm.create_model('deit_small_patch16_224').eval(), torch.zeros(1, 3, 224, 224)

    def total(**handles):
        count = fvcore.FlopCountAnalysis(model, image).set_op_handle(**handles)
        return count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total() / 1e9
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    found = [vitzoo.profile(model, 224).macs / 1e9, total(), total(**fvcore_handles()), counter.get_total_flops() / 2e9]
    for block in model.blocks:
        block.attn.fused_attn = False
    found.insert(2, total())
    stated = re.findall(r'^\| .*? \| (\d\.\d{4}) \|', (DOCS / 'faq.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert [f'{value:.4f}' for value in found] == stated


def test_costs_are_as_the_page_says():
    text = ' '.join((DOCS / 'faq.md').read_text(encoding='utf-8').split())
    for name, words in ('deit_small_patch16_224', 'DeiT-S makes {macs} G multiply-adds, moves {megabytes} MB an image and has {operators} '
                        'operators'), ('svit_small', '`svit_small` makes {macs} G, and moves {megabytes} MB with {operators} operators'):
        with torch.device('meta'):
            cost = vitzoo.profile(timm.create_model(name), 224)
        assert words.format(macs=f'{cost.macs / 1e9:.2f}', megabytes=f'{cost.bytes_moved / 1e6:.0f}', operators=cost.operators) in text


def _meet(name):
    """Do what leads to an error of the page."""
    micro = timm.create_model('svit_micro')
    return {
        'Unknown model': lambda: timm.create_model('svit_smalll'),
        'No program can download weights for ': lambda: timm.create_model('svit_small', pretrained=True),
        ' classifies 1000 classes, the model 10': lambda: vitzoo.load_checkpoint(
            timm.create_model('svit_micro', num_classes=10), micro.state_dict()),
        ' cannot load it': lambda: vitzoo.load_checkpoint(timm.create_model('stvit_micro'), micro.state_dict()),
        'Image of 64x64 is too small: the minimum is 112x112': lambda: timm.create_model('biformer_stl_nchw')(torch.zeros(1, 3, 64, 64)),
        'it comes with: pip install "vitzoo[mm]"': lambda: importlib.import_module('vitzoo.extras').require('nothing_of_that_name', 'mm'),
        "expected timm's VisionTransformer or Eva, or a model with one of them inside": lambda: vitzoo.reduce_tokens(micro, 'tome'),
    }[name]()


@pytest.mark.parametrize('words', [
    'Unknown model', 'No program can download weights for ', ' classifies 1000 classes, the model 10', ' cannot load it',
    'Image of 64x64 is too small: the minimum is 112x112', 'it comes with: pip install "vitzoo[mm]"',
    "expected timm's VisionTransformer or Eva, or a model with one of them inside"])
def test_errors_have_the_words_of_the_page(words):
    headings = re.findall(r'^### .*`.*', (DOCS / 'faq.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert any(words in heading for heading in headings)
    with pytest.raises((ValueError, RuntimeError, ImportError), match=re.escape(words)):
        _meet(words)


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path):
    python = next((path for path in [ROOT / '.venv-docs' / 'bin' / 'python'] if path.exists()), Path(sys.executable))
    if python == Path(sys.executable) and not (find_spec('mkdocs') and find_spec('mkdocstrings')):
        pytest.skip('mkdocs with mkdocstrings is not installed: `make docs` sets up an environment for it')
    address = 'https://example.org/vitzoo'
    command = [str(python), '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)]
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1', 'VITZOO_REPOSITORY': address}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.name: path.read_text(encoding='utf-8') for path in tmp_path.glob('*.html')}
    assert set(pages) >= {page.with_suffix('.html').name for page in PAGES} | {'changelog.html'}
    assert '0.1.0' in pages['changelog.html'] and 'id="vitzoo.weights.load.load_checkpoint"' in pages['api.html']
    assert pages['index.html'].count('<td><a href="svit.html">') == 1 and f'href="{address}"' in pages['index.html']
    for name, text in pages.items():  # scripts, styles, fonts and pictures are the site's own
        assert not re.findall(r'(?:\bsrc=|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href=)"?https?:', text), name
    shutil.rmtree(tmp_path)
