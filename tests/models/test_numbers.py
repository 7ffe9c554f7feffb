"""The numbers that every model is known by, in one table, `vitzoo/profiling/counts.csv`: counted once a model here, and written alike in
the README and on its page."""
import re
from pathlib import Path

import pytest
import timm
import torch
import zoo
from timm.utils import reparameterize_model

import vitzoo
from vitzoo.profiling.counted import counted

ROOT = Path(__file__).parents[2]


NUMBERS = counted()

# MB moved and operators after `reparameterize_model`
FOLDED = {
    'biformer_small': (244.8, 677),
    'cas_vit_s': (199.7, 820),
    'lookupvit_small_patch16': (69.1, 460),
    'stvit_small': (162.6, 335),
    'svit_small': (215.7, 430),
    'vz_davit_tiny': (137.9, 194),
}

# GMACs that were published, within one percent; whoever counts other things than we do has a test in the family's file
PUBLISHED = {
    'biformer_tiny': 2.23, 'biformer_small': 4.49, 'biformer_base': 9.79, 'biformer_stl': 4.59, 'biformer_stl_nchw': 4.59,
    'stvit_deit_tiny': 0.523, 'stvit_deit_small': 1.908, 'stvit_deit_base': 7.265,
    'svit_small': 4.37, 'svit_base': 9.87, 'svit_large': 15.60,
    'vz_davit_tiny': 4.540, 'vz_davit_small': 8.800, 'vz_davit_base': 15.511, 'vz_davit_large': 102.967,  # with LayerNorm, 0.4 % of tiny
}


def cost(name, fold=False):
    with torch.device('meta'):
        model = timm.create_model(name).eval()
    size = timm.get_pretrained_cfg(name).input_size
    return vitzoo.profile(reparameterize_model(model) if fold else model, size)


def test_every_model_is_in_the_table():
    assert set(NUMBERS) == set(zoo.NAMES)


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in zoo.MICRO, NUMBERS))
def test_numbers(name):
    found, expected = cost(name), NUMBERS[name]
    assert (found.params, found.macs, found.operators) == (expected.params, expected.macs, expected.operators)
    assert found.bytes_moved / 1e6 == pytest.approx(expected.megabytes, abs=0.06)


@pytest.mark.parametrize('name', zoo.first_quick(FOLDED))
def test_numbers_of_a_folded_model(name):
    found, (megabytes, operators) = cost(name, fold=True), FOLDED[name]
    assert found.operators == operators and found.bytes_moved / 1e6 == pytest.approx(megabytes, abs=0.06)


@pytest.mark.parametrize('name', PUBLISHED)
def test_operations_are_the_published_ones(name):
    assert NUMBERS[name].macs / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


# ---- the tables and sentences of the README and the docs

def tables(page, column):
    """The rows of all tables with such a column, as {heading: cell}, and the names that the first cell lists."""
    heading = None
    for line in page.read_text(encoding='utf-8').splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')] if line.startswith('|') else None
        if cells is None or heading is None:
            heading = cells
        elif column in heading and not cells[0].startswith('---'):
            yield dict(zip(heading, cells, strict=True)), names_in(cells[0])


def names_in(cell):
    """`svit_small`, `base` -> svit_small, svit_base."""
    first, *others = re.findall(r'`([^`]+)`', cell.split(' (')[0]) or ['']
    return [first, *(re.sub('tiny|small|xs', other, first) for other in others)]


def numbers_in(cell):
    """Without what stands in brackets or says at which image size: '4.51 (4.54)', '102.1 at 384'."""
    return re.findall(r'[\d,]*\d(?:\.\d+)?', re.sub(r'\(.*?\)|at \d+', '', cell))


def written(values, like):
    """Numbers with the digits that the text has."""
    return [f'{value:,.{len(text.partition(".")[2])}f}' for value, text in zip(values, like, strict=True)]


def check(row, names):
    params, macs, *_ = zip(*(NUMBERS[name] for name in names), strict=True)
    text = numbers_in(row['params'])
    assert written([n / 1e6 if row['params'].endswith('M') else n for n in params], text) == text, row
    gmacs = next(cell for heading, cell in row.items() if heading.startswith('GMACs'))
    assert written([n / 1e9 for n in macs], numbers_in(gmacs)) == numbers_in(gmacs), row


def test_readme_has_the_numbers():
    seen = set()
    for row, names in tables(ROOT / 'README.md', 'params'):
        if names == ['*_micro']:
            names = zoo.MICRO
            for column, heading, unit in (0, 'params', 1e6), (1, 'GMACs at 224', 1e9):
                values = [NUMBERS[name][column] / unit for name in names]
                assert [f'{least:.1f}' for least in (min(values), max(values))] == numbers_in(row[heading])
        else:
            check(row, names)
        seen |= set(names)
    assert seen == set(NUMBERS)


@pytest.mark.parametrize('family', zoo.FAMILIES)
def test_page_has_the_numbers(family):
    page, seen = ROOT / 'docs' / f'{family}.md', set()
    for row, names in tables(page, 'params'):
        check(row, names)
        seen |= set(names)
    assert seen == set(zoo.FAMILIES[family])

    traffic = {name: {} for name in zoo.FAMILIES[family]}
    for row, (name,) in tables(page, 'MB moved'):
        if row[''].endswith(', 224x224') and name:
            traffic[name] = numbers_in(row['MB moved']) + numbers_in(row['operators'])
    sentence = r'`vitzoo info (\w+)`\):\s+(\d+) MB moved by\s+(\d+)\s+operators(?:,\s+(\d+) MB and (\d+) folded)?'
    for name, megabytes, operators, *folded in re.findall(sentence, page.read_text(encoding='utf-8')):
        traffic[name] = [megabytes, operators]
        assert not folded[0] or folded == written(FOLDED[name], folded)
    assert any(traffic.values())
    for name, found in traffic.items():
        assert not found or found == written(NUMBERS[name][2:], found), name
