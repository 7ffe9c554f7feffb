"""The numbers that every model is known by, in one table: counted once a model, and written alike in the README and on its page."""
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import zoo
from timm.utils import reparameterize_model

import vitzoo

ROOT = Path(__file__).parents[2]


class Numbers(NamedTuple):
    """All but the parameters at the image size of the model's configuration."""
    params: int
    macs: int
    megabytes: float  # moved an image, of a batch of 128 at 2 bytes an element
    operators: int


NUMBERS = {name: Numbers(*numbers) for name, numbers in {
    'biformer_micro': (1_065_864, 204_309_536, 27.1, 130),
    'biformer_nchw_micro': (924_072, 196_704_192, 30.7, 152),
    'biformer_tiny': (13_142_760, 2_215_901_568, 123.3, 340),
    'biformer_small': (25_536_232, 4_463_629_568, 247.9, 712),
    'biformer_base': (56_804_968, 9_758_990_208, 369.4, 712),
    'biformer_stl': (28_372_552, 4_573_874_496, 168.3, 265),
    'biformer_stl_nchw': (28_372_552, 4_573_874_496, 197.5, 299),
    'cas_vit_micro': (1_671_880, 260_293_952, 58.75, 306),
    'cas_vit_xs': (2_979_700, 546_784_968, 133.82, 596),
    'cas_vit_s': (5_507_224, 911_992_576, 208.27, 886),
    'cas_vit_m': (12_036_520, 1_859_099_520, 291.83, 886),
    'cas_vit_t': (21_250_120, 3_556_915_712, 415.48, 886),
    'dualtoken_vit_micro': (1_500_564, 179_467_384, 28.8, 246),
    'dualtoken_vit_tiny': (5_860_702, 493_789_472, 52.6, 544),
    'dualtoken_vit_small': (11_295_100, 997_357_568, 76.8, 642),
    'lookupvit_micro': (1_865_968, 503_738_880, 40.2, 193),
    'lookupvit_tiny_patch16': (9_047_504, 578_994_048, 36.7, 484),
    'lookupvit_small_patch16': (34_902_992, 2_183_397_120, 73.4, 484),
    'lookupvit_base_patch16': (137_043_920, 8_468_430_336, 147.5, 484),
    'lookupvit_large_patch16': (481_918_928, 29_716_727_808, 390.9, 952),
    'rmt_micro': (1_428_216, 311_237_440, 42.9, 165),
    'rmt_tiny': (14_334_216, 2_637_220_864, 178.9, 390),
    'rmt_small': (26_967_240, 4_776_574_976, 359.9, 849),
    'rmt_base': (54_154_896, 10_373_118_208, 682.0, 1363),
    'rmt_large': (95_464_864, 19_487_964_928, 950.0, 1363),
    'rmt_small_tl': (27_480_240, 4_801_662_976, 360.2, 853),
    'rmt_base_tl': (54_667_896, 10_398_206_208, 682.3, 1367),
    'rmt_large_tl': (96_105_864, 19_519_324_928, 950.3, 1367),
    'stvit_micro': (1_401_768, 259_687_424, 30.6, 174),
    'stvit_tiny': (28_320_214, 3_540_999_168, 127.3, 191),
    'stvit_small': (49_625_518, 5_628_447_744, 166.3, 349),
    'stvit_base': (87_812_336, 9_920_122_880, 221.8, 349),
    'stvit_deit_micro': (1_446_120, 143_201_280, 7.6, 94),
    'stvit_deit_tiny': (5_722_600, 522_898_944, 18.3, 166),
    'stvit_deit_small': (22_061_032, 1_908_120_576, 35.9, 166),
    'stvit_deit_base': (86_588_392, 7_265_531_904, 71.4, 166),
    'svit_micro': (1_569_560, 305_777_664, 33.8, 142),
    'svit_small': (25_495_624, 4_340_363_648, 223.6, 494),
    'svit_base': (51_691_288, 9_824_130_048, 424.9, 735),
    'svit_large': (94_971_096, 15_540_662_912, 533.2, 896),
    'vz_davit_micro': (1_242_728, 286_882_240, 33.9, 150),
    'vz_davit_fl_micro': (1_269_112, 256_195_968, 25.9, 157),
    'vz_davit_tiny': (28_360_168, 4_508_825_088, 137.9, 218),
    'vz_davit_small': (49_745_896, 8_760_036_864, 225.5, 422),
    'vz_davit_base': (87_954_408, 15_457_150_976, 300.9, 422),
    'vz_davit_large': (196_811_752, 102_110_576_640, 1306.3, 426),
    'vz_davit_base_fl': (91_395_048, 183_986_348_032, 3293.5, 454),
    'vz_davit_huge_fl': (362_685_416, 726_407_069_696, 6646.6, 454),
}.items()}

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
