"""The reduction study: its rows, that it goes on where it was, its table and picture."""
import pytest
import torch
import zoo

import vitzoo

pytest.importorskip('sklearn')

from benchmarks.reduction.report import report, summarise, table  # noqa: E402
from benchmarks.reduction.study import WINDOW, append_row, make_model, read_rows, run, settings, train, tuning_loss  # noqa: E402
from vitzoo.reduction import METHODS  # noqa: E402

SMALL = dict(iterations=2, tuning=1, scenes={'train': 12, 'val': 10})


def test_it_goes_on_where_it_was(tmp_path):
    path = tmp_path / 'x.csv'
    rows = run(['evit'], [0], path, tmp_path, **SMALL)
    assert [row['setting'] for row in rows] == ['plain', *map(str, settings(['evit']))]
    assert all(0 <= float(row[name]) <= 100 for row in rows for name in ('accuracy', 'tuned_accuracy'))
    macs = [int(row['macs']) for row in rows]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == len(macs)
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:2], lines[3]]) + '\n')  # one is lost
    again = run(['evit'], [0], path, tmp_path, **SMALL)
    assert {row['setting'] for row in again} == {row['setting'] for row in rows} and len(again) == len(rows)
    new = {row['setting']: row for row in again}
    for row in rows:  # the same weights and the same crops
        assert new[row['setting']]['accuracy'] == row['accuracy'] and new[row['setting']]['tuned_accuracy'] == row['tuned_accuracy']


@pytest.mark.parametrize('method', zoo.first_quick(METHODS))
def test_every_method_can_be_fine_tuned(tmp_path, method):
    teacher, model = make_model().eval(), make_model()
    setting = settings([method])[-1]
    vitzoo.reduce_tokens(model, method, **setting.options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = torch.randint(0, 256, (8, 3, WINDOW + 6, WINDOW + 6), dtype=torch.uint8), torch.arange(8)
    train(model, data, 2, 1e-3, 0, tuning_loss(method, teacher))
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert len(still) < len(before) // 10, still


def test_table_and_picture(tmp_path):
    pytest.importorskip('matplotlib')
    path, page = tmp_path / 'x.csv', tmp_path / 'x.md'
    for seed, accuracy in (0, 80.), (1, 90.), (2, 84.):
        for setting, macs in ('plain', 10 ** 7), ('tome r=8', 6 * 10 ** 6), ('dynamicvit keep_rate=0.7', 7 * 10 ** 6):
            append_row(path, dict(seed=seed, method=setting.split()[0], setting=setting, accuracy=accuracy, tuned_accuracy=accuracy + 1,
                                  macs=macs, tokens=9))
    rows = read_rows(path)
    assert summarise(rows)['tome r=8']['tuned_accuracy'] == (85, 81, 91)
    text = table(summarise(rows))
    assert '| `tome r=8` | 9 | 6.00 | 0.60 | 84.0 [80.0, 90.0] | 85.0 [81.0, 91.0] | 3 |' in text
    assert '| - | 85.0 [81.0, 91.0] |' in text  # its predictors were not trained
    page.write_text('before\n<!-- study -->\nold\n<!-- end of study -->\nafter\n')
    report(rows, page, tmp_path / 'x.png')
    assert page.read_text() == f'before\n<!-- study -->\n\n{text}\n\n<!-- end of study -->\nafter\n' and (tmp_path / 'x.png').is_file()
    page.write_text('no markers')
    with pytest.raises(ValueError, match='no <!-- study -->'):
        report(rows, page, tmp_path / 'x.png')


def test_other_columns(tmp_path):
    (tmp_path / 'x.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match='columns'):
        read_rows(tmp_path / 'x.csv')
