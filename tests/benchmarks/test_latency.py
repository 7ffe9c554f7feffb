"""The latency table: its rows, that it goes on where it was, its page, and the comparison of two runs."""
import sys

import pytest
from zoo import MICRO, NAMES

from benchmarks import rows as rows_of
from benchmarks.latency import __main__ as command
from benchmarks.latency import measure as module
from benchmarks.latency import plan
from benchmarks.latency.measure import FIELDS, compare, key, measure, read
from benchmarks.latency.report import advice, models_at, page, report, table
from vitzoo.profiling.bench import Case, Measured


def row(model, ms, size=224, runtime='onnxruntime', top1='', share=0.5, **values):
    source = {'top1_size': 224, 'top1_source': 'https://x.org/a'} if top1 else {}
    return {name: str(value) for name, value in {
        **dict.fromkeys(FIELDS, ''), 'model': model, 'size': size, 'runtime': runtime, 'ms': ms, 'share': share, 'params': 10 ** 7,
        'macs': int(ms * 1e8), 'top1': top1, 'cpu': 'a CPU', **source, **values}.items()}


ROWS = [
    row('svit_small', 80, top1=83.6), row('svit_small', 40, runtime='onnxruntime int8', top1=83.6),
    row('svit_base', 170, top1=84.8), row('caformer_s18', 75, top1=83.7, top1_tag='dist_in1k'),
    row('shvit_s4', 18, top1=79.4, top1_size=256), row('shvit_s4', 20, runtime='onnxruntime int8', top1=79.4),
    row('lookupvit_tiny_patch16', 12),
    row('swin_tiny_patch4_window7_224', 1, size=640, error='it does not take this size') | {'ms': '', 'share': ''},
    row('svit_small', 700, size=640, top1=83.6),
]


def test_all_of_ours_and_enough_others_are_measured():
    import timm
    assert set(plan.models()) >= set(NAMES) - set(MICRO) and len(set(plan.models())) == len(plan.models()) >= 40
    assert not [name for name in plan.PEERS if not timm.is_model(name) or plan.is_ours(name)]


def test_it_goes_on_where_it_was(tmp_path, monkeypatch):
    asked = []

    def bench(cases, **options):
        asked.append((cases[0].model, cases[0].size[0], options['rounds']))
        if cases[0].model == 'shvit_s4':
            raise ValueError('it does not take this size')
        return [Measured(case, {1: (2., 1., 3.)}, {1: .5}, 10, 20, error='broken' if case.precision == 'int8' else None) for case in cases]
    monkeypatch.setattr(module, 'bench', bench)
    path, names = tmp_path / 'x.csv', ['svit_micro', 'shvit_s4']
    rows = measure(names, [64, 640], path, tmp_path, report=str)
    assert asked == [(name, size, rounds) for size, rounds in ((64, 5), (640, 3)) for name in names]
    assert {key(r) for r in rows} == {(name, size, how) for name in names for size in (64, 640) for how in plan.RUNTIMES}
    assert all(r['error'] == 'it does not take this size' and not r['ms'] for r in rows if r['model'] == 'shvit_s4')
    assert [r['ms'] for r in rows if r['model'] == 'svit_micro' and not r['error']] == ['2.0'] * 4
    assert {r['top1_source'][:8] for r in rows if r['model'] == 'shvit_s4'} == {'https://'}
    asked.clear()
    assert measure(names, [64, 640], path, tmp_path, report=str) == rows and not asked
    measure(names, [64], path, tmp_path, rounds=2, again=True, report=str)
    assert asked == [('svit_micro', 64, 2), ('shvit_s4', 64, 2)] and len(read(path)) == len(rows)


def test_a_row_of_a_real_model(tmp_path):
    eager, *files = module.measure_model('test_vit', 33, 1, tmp_path)  # no multiple of its patches
    assert all('33' in r['error'] and not r['ms'] for r in (eager, *files))
    result = module._row(Measured(Case('svit_small', (224, 224)), {1: (10.12345, 9., 11.)}, {1: .123456}, 5, 7, file_megabytes=1.234),
                         'eager', 3)
    assert set(result) == set(FIELDS) and result['ms'] == 10.123 and result['share'] == .1235 and result['top1'] == 83.6
    assert result['cpu'] and result['timm']


def test_files_are_made_beforehand(tmp_path, monkeypatch):
    asked, told = [], []

    def get(exports, name, size, precision):
        asked.append((name, size, precision, exports.derive))
        if precision == 'int8':
            raise ValueError('a reason')
        return tmp_path / 'x.onnx'
    monkeypatch.setattr(module.Exports, 'get', get)
    module.export(['svit_micro'], [64], tmp_path, report=told.append)
    assert asked == [('svit_micro', (64, 64), precision, True) for precision in ('fp32', 'int8')]
    assert told == [str(tmp_path / 'x.onnx'), 'svit_micro 64 int8: ValueError: a reason']


def test_ranks_of_two_runs():
    first = [row(f'm{i}', 10 + i, share=0.5) for i in range(5)]
    busy = [row(f'm{i}', 10 + i, share=0.5) | {'ms': str(3 * (10 + i))} for i in range(5)]  # the matrix product took longer as well
    assert compare(first, busy) == {(224, 'onnxruntime'): (5, pytest.approx(1))}
    other = [*first[:3], first[3] | {'share': '0.1'}, first[4]]
    assert compare(first, other)[224, 'onnxruntime'][1] < 0.98
    with pytest.raises(ValueError, match='too few'):
        compare(first[:2], busy)


def test_the_command_compares(tmp_path, monkeypatch, capsys):
    rows = [row(f'm{i}', 10 + i) for i in range(4)]
    for name, content in ('a', rows), ('b', rows), ('c', [r | {'share': str(1 / (1 + i))} for i, r in enumerate(reversed(rows))]):
        rows_of.write(tmp_path / f'{name}.csv', FIELDS, content)

    def run(second):
        monkeypatch.setattr(sys, 'argv', ['x', '--out', str(tmp_path / 'a.csv'), '--second', str(tmp_path / second)])
        return command.main()
    assert run('b.csv') == 0 and 'rank correlation 1.0000' in capsys.readouterr().out
    assert run('c.csv') == 1
    assert run('none.csv') == 2


def test_words_follow_the_figures():
    lines = advice(ROWS, 224)
    assert lines[:3] == ['Up to 20 ms an image: `shvit_s4` (79.4 % in 18.0 ms).',
                         'Up to 80 ms an image: `caformer_s18` (83.7 % in 75.0 ms).',
                         'Up to 320 ms an image: `svit_base` (84.8 % in 170 ms).']
    text = '\n'.join(lines)
    assert 'nothing measured here is both as fast and as accurate as `svit_base`.' in text
    assert 'Instead of `svit_small` (83.6 % in 80.0 ms) take `caformer_s18` (83.7 % in 75.0 ms).' in text
    assert 'an accuracy of `lookupvit_tiny_patch16`' in text
    assert 'pays most in `svit_small` (2.00x)' in text and 'int8 makes `shvit_s4` slower' in text


def test_table_and_page():
    assert [model.name for model in models_at(ROWS, 224)][:2] == ['lookupvit_tiny_patch16', 'shvit_s4']
    lines = table(ROWS).splitlines()
    small = next(line for line in lines if 'svit_small' in line)
    assert small == '| **`svit_small`** | 83.6 ([1]) | 10.0 | 8.00 | 70.00 | - | 80.0 (0.50) | 40.0 (0.50) | - | 700 (0.50) | - |'
    assert any('79.4 ([1], at 256)' in line for line in lines) and any('83.7 ([1], distilled)' in line for line in lines)
    text = page(ROWS, {224: 'a.png', 640: 'b.png'})
    assert 'a CPU' in text and '(a.png)' in text and '1. <https://x.org/a>' in text
    assert '`swin_tiny_patch4_window7_224`, ONNX Runtime at 640: it does not take this size' in text


def test_report_writes_page_and_pictures(tmp_path):
    pytest.importorskip('matplotlib')
    report(ROWS, tmp_path / 'latency.md')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['latency.md', 'latency_224.png', 'latency_640.png']
    with pytest.raises(ValueError, match='no rows'):
        report([], tmp_path / 'latency.md')
