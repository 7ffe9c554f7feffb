"""The page about which model to take: it follows from the data, and is current."""
import pytest
import timm
from test_latency import row

from benchmarks.latency import choose, plan
from benchmarks.latency.choose import CSV, choices, costs, table
from benchmarks.latency.measure import read
from vitzoo.profiling.published import published

COSTS = {'svit_small': (25_000_000, 4_340_000_000), 'rmt_small': (27_000_000, 4_780_000_000),
         'lookupvit_small_patch16': (34_900_000, 2_180_000_000)}
ROWS = [
    row(choose.YARDSTICK, 100, runtime='eager'), row(choose.YARDSTICK, 80),
    row('svit_small', 90), row('svit_small', 50, runtime='onnxruntime int8'),
    row('edgenext_base', 60), row('swin_tiny_patch4_window7_224', 120),
    row('caformer_s18', 40, cpu='another CPU'),
]


def test_page_is_current():
    rows = read(CSV)
    assert (choose.ROOT / 'docs' / 'choose.md').read_text(encoding='utf-8') == choose.page(choices(rows, costs()), rows), \
        'run python -m benchmarks.latency.choose'


def test_ours_are_those_for_224():
    assert set(costs()) <= set(plan.ours()) and not {'vz_davit_base_fl', 'vz_davit_large'} & set(costs())
    assert {'rmt_small', 'cas_vit_s', 'dualtoken_vit_tiny', 'vz_davit_base'} <= set(costs())


def test_times_are_multiples_of_the_yardstick():
    found = {choice.name: choice for choice in choices(ROWS, COSTS)}
    assert list(found) == sorted(found, key=lambda name: (found[name].macs, name))
    assert found['svit_small'].speed == {224: {'onnxruntime': .9, 'onnxruntime int8': .5}}
    assert not found['caformer_s18'].speed and not found['rmt_small'].speed  # another CPU; not measured
    assert [found[name].weights for name in ('svit_small', 'edgenext_base', 'lookupvit_small_patch16')] == ['by hand', 'yes', 'none']
    with pytest.raises(ValueError, match=f'no time of {choose.YARDSTICK} in PyTorch at 224'):
        choices(ROWS[1:], COSTS)


def test_table_has_ours_and_the_strongest():
    links = {}
    lines = table(choices(ROWS, COSTS), links).splitlines()[2:]
    names = {line.split('`')[1] for line in lines}
    assert names == {'svit_small', 'rmt_small', 'lookupvit_small_patch16', choose.YARDSTICK, 'edgenext_base'}  # swin and caformer are not
    assert f'| **`rmt_small`** | [84.1][{links[published("rmt_small").source]}] | 27.0 | 4.78 | - | - | - | by hand |' in lines
    assert any(line.startswith('| `edgenext_base` | [83.7]') and '(at 256)' in line for line in lines)


def test_words_follow_the_figures():
    found = choices(ROWS, COSTS)
    first, second, third = choose.for_servers(found)
    assert "within all of DeiT-S's time in PyTorch take `edgenext_base` (83.7 %)" in first
    assert second == "Each of ours is beaten in both by another model; `edgenext_base` (83.7 %) beats `svit_small` (83.6 %)."
    assert 'Of 2 models of ours with a published accuracy 1 have no time yet' in third and '`rmt_small` (84.1 %)' in third
    faster = [*ROWS, row('svit_small', 30, runtime='eager'), row('svit_small', 20)]
    assert 'nothing measured is both faster and as accurate as `svit_small` (83.6 %)' in choose.for_servers(choices(faster, COSTS))[1]


def test_no_need_has_more_than_three_sentences():
    rows = read(CSV)
    found = choices(rows, costs())
    assert all(len(sentences(found)) == 3 for sentences in choose.NEEDS.values())
    assert all(timm.is_model(choice.name) for choice in found)


def test_report_writes_page_and_pictures(tmp_path):
    pytest.importorskip('matplotlib')
    choose.report(tmp_path / 'choose.md')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['choose.md', 'choose.png', 'choose_int8.png']
