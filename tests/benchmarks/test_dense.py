"""The dense bench: its table, its choice of rows, its report."""
import functools
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import zoo

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from samples import batch, build, total  # noqa: E402

from benchmarks.dense import plan  # noqa: E402
from benchmarks.dense.report import END, START, report  # noqa: E402
from benchmarks.dense.rows import append_row, is_tested, read_rows, row_key  # noqa: E402
from benchmarks.dense.run import run  # noqa: E402
from benchmarks.dense.train import cost, row_config, weights_of  # noqa: E402

ROOT = Path(__file__).parents[2]


@functools.cache
def budget(task):
    return row_config('svit_micro', task).train_cfg.max_iters


def row(model='svit_micro', task='segmentation', seed=0, **values):
    defaults = dict(params=1000, macs=2000, input='128x160', iterations=budget(task), cpu_seconds=10,
                    **{name: 1 for name in plan.TASKS[task].metrics})
    return dict(model=model, task=task, seed=seed, **{**defaults, **values})


def keys(path):
    return [row_key(r) for r in read_rows(path)]


# ---- the table of rows

def _append(arguments):
    append_row(*arguments)


def test_rows_of_several_processes_all_arrive(tmp_path):
    path = tmp_path / 'docs' / 'x.csv'
    rows = [dict(model='svit_micro', task='detection', seed=seed) for seed in range(12)]
    with ProcessPoolExecutor(3, get_context('fork')) as pool:
        list(pool.map(_append, [(path, r) for r in rows]))
    assert sorted(keys(path)) == [('svit_micro', 'detection', seed) for seed in range(12)]
    append_row(path, dict(rows[3], mIoU=5))
    assert len(keys(path)) == 12 and read_rows(path)[-1]['mIoU'] == '5'


def test_a_row_that_cannot_be_written_changes_nothing(tmp_path):
    path = tmp_path / 'x.csv'
    append_row(path, row())
    before = path.read_bytes()
    with pytest.raises(ValueError, match='colour'):
        append_row(path, row(seed=1, colour='red'))
    assert path.read_bytes() == before and not list(tmp_path.glob('*.tmp'))


def test_a_foreign_table_is_refused(tmp_path):
    (tmp_path / 'x.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match="'a', 'b'"):
        append_row(tmp_path / 'x.csv', row())


def test_select():
    everything = plan.select()
    rows = 3 * len(plan.FAMILIES + plan.REFERENCES)  # of a seed
    assert len(everything) == len(set(everything)) == 3 * rows
    assert {seed for _, _, seed in everything[:rows]} == {0}  # one seed after the other
    assert plan.select(['svit_micro'], ['detection', 'segmentation'], [5]) == [
        ('svit_micro', 'detection', 5), ('svit_micro', 'segmentation', 5)]
    for choice, message in ((['vit'], ()), 'timm_resnet'), (((), ['pose']), 'classification'), (((), (), [-1]), 'seeds'):
        with pytest.raises(ValueError, match=message):
            plan.select(*choice)


def test_models_are_those_of_the_registry_and_two_of_timm():
    """Of each family the micro model, if its maps are of stride 8 or finer: a patch of 16 pixels is a third of a crop of a digit."""
    left_out = set(zoo.FIRST.values()) - set(plan.FAMILIES)
    assert set(plan.FAMILIES) <= set(zoo.FIRST.values()) and {*plan.MODELS} == {
        *plan.FAMILIES, *plan.REFERENCES, *plan.PLAIN, *plan.RECOVER}
    assert all(zoo.is_columnar(name) for name in left_out) and 'lookupvit_micro' in plan.FAMILIES


@pytest.mark.parametrize('csv, page, seconds', [('results.csv', 'bench_dense.md', True), ('reduction.csv', 'vit_backbones.md', False),
                                                ('recover.csv', 'dense.md', False)])
def test_page_has_the_rows_that_are_kept(csv, page, seconds, tmp_path):
    path, page = ROOT / 'benchmarks' / 'dense' / csv, ROOT / 'docs' / page
    rows = read_rows(path)
    if csv == 'results.csv':
        assert len(rows) >= 90 and {row_key(r) for r in rows} <= set(plan.select()) and all(map(is_tested, rows))
    else:
        assert rows and {row['model'] for row in rows} <= {*plan.PLAIN, *plan.RECOVER}
    pytest.importorskip('matplotlib')
    (tmp_path / 'x.md').write_text(page.read_text())
    report(path, tmp_path / 'x.md', tmp_path / 'x.png', seconds=seconds)
    assert (tmp_path / 'x.md').read_text() == page.read_text(), 'run python -m benchmarks.dense --report-only, as the page says'


# ---- running

@pytest.fixture
def start(digits, tmp_path):
    """Run a choice of rows with a stand-in for training; gives the failures and the rows that were trained."""
    trained = []

    def train(key, work_dir, path, iterations, advance):
        trained.append(key)
        advance(1)
        if key[0] == 'biformer_micro':
            raise RuntimeError('the power failed')
        append_row(path, row(*key, **({} if iterations is None else {'iterations': iterations})))

    def start(*choice, **kwargs):
        trained.clear()
        failures = run(plan.select(*choice), tmp_path / 'x.csv', data=digits, out=tmp_path / 'out', preset='micro', run_row=train,
                             **kwargs)
        return failures, trained
    return start


def test_run_skips_finished_rows_and_survives_a_failure(start, tmp_path, capsys):
    models = ['svit_micro', 'biformer_micro', 'timm_resnet']
    failures, trained = start(models, ['segmentation'], [0], jobs=2)
    (failed, reason), = failures.items()
    assert failed == ('biformer_micro', 'segmentation', 0) and 'the power failed' in reason
    assert len(trained) == 3 and sorted(keys(tmp_path / 'x.csv')) == [(m, 'segmentation', 0) for m in ('svit_micro', 'timm_resnet')]
    assert 'FAILED biformer_micro, segmentation, 0' in capsys.readouterr().err
    assert start(models, ['segmentation'], [0, 1], jobs=1)[1] == [
        ('biformer_micro', 'segmentation', 0), *((m, 'segmentation', 1) for m in models)]


def test_run_refuses_to_mix_budgets(start):
    start(['svit_micro'], ['segmentation'], [0], iterations=3)
    with pytest.raises(ValueError, match='after 3 iterations'):
        start(['svit_micro'], ['segmentation'], [0])
    with pytest.raises(ValueError, match='jobs'):
        start(['svit_micro'], jobs=0)


def test_rows_without_a_test_are_tested_where_their_weights_are(start, tmp_path, capsys):
    for seed in range(3):
        append_row(tmp_path / 'x.csv', row(seed=seed, **({'test_mIoU': 2} if seed == 2 else {})))
    weights = weights_of(tmp_path / 'out' / 'svit_micro-segmentation-1', budget('segmentation'))
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b'')
    assert start(['svit_micro'], ['segmentation'], [0, 1, 2], jobs=1)[1] == [('svit_micro', 'segmentation', 1)]
    assert '1 without a test' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_command_trains_each_task(digits, tmp_path):
    paths = {name: tmp_path / file for name, file in (('csv', 'x.csv'), ('page', 'x.md'), ('picture', 'x.png'))}
    command = [sys.executable, '-m', 'benchmarks.dense', '--models', 'lookupvit_micro', 'timm_swin', '--seeds', '3', '--iterations', '2',
               '--jobs', '2', '--preset', 'micro', '--data', str(digits), '--out', str(tmp_path / 'out'),
               *(str(part) for name, path in paths.items() for part in (f'--{name}', path))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr
    rows = read_rows(paths['csv'])
    assert sorted(row_key(r) for r in rows) == sorted(plan.select(['lookupvit_micro', 'timm_swin'], seeds=[3]))
    assert all(r['iterations'] == '2' and float(r['cpu_seconds']) > 0 and is_tested(r) for r in rows)

    old = next(r for r in rows if row_key(r) == ('timm_swin', 'classification', 3))  # as from before there was a test part
    append_row(paths['csv'], {**old, 'test_top1': ''})
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0 and '5 of them finished' in result.stderr, result.stderr
    assert old in read_rows(paths['csv'])
    assert 'timm_swin' in paths['page'].read_text() and paths['picture'].is_file()

    (tmp_path / 'out' / 'broken').write_text('')
    broken = subprocess.run([*command, '--tasks', 'detection', '--seeds', '4', '--out', str(tmp_path / 'out' / 'broken')],
                            cwd=ROOT, capture_output=True, text=True)
    assert broken.returncode == 1 and broken.stderr.count('FAILED') == 2


# ---- the report

@pytest.fixture
def table(tmp_path):
    path = tmp_path / 'x.csv'
    for seed, value in enumerate((50, 46, 60)):
        append_row(path, row('svit_micro', seed=seed, mIoU=value, macs=118_600_000))
        append_row(path, row('timm_resnet', seed=seed, mIoU=value - 10, macs=124_800_000))
    append_row(path, row('svit_micro', 'detection', box_mAP50=0.65, macs=118_600_000))
    return path


def test_report_has_medians_and_spread(table, tmp_path):
    pytest.importorskip('matplotlib')
    page = tmp_path / 'x.md'
    page.write_text(f'# Title\n{START}\nold\n{END}\nlast\n')
    sentences = report(table, page, tmp_path / 'x.png')
    text = page.read_text()
    assert text.startswith('# Title') and text.endswith('last\n') and 'old' not in text
    assert '| svit_micro | **50.0** [46.0, 60.0] | 3 | 0.00 | 118.6 | 10 |' in text
    assert '| timm_resnet | 40.0 [36.0, 50.0] | 3 |' in text
    assert '| svit_micro | **0.650** |' in text and '| model | mIoU, val | seeds |' in text
    assert [s.split(':')[0] for s in sentences] == ['fails', 'open', 'open', 'holds']
    assert 'svit_micro 0.650' in sentences[0] and 'svit_micro in segmentation' in sentences[-1]
    again = report(table, page, tmp_path / 'x.png')
    assert again == sentences and page.read_text() == text


def test_report_on_the_test_part(table, tmp_path):
    """A model has the median of the seeds that have a figure there, and it decides when all models do."""
    pytest.importorskip('matplotlib')
    for seed, value in enumerate((50, 46, 60)):
        append_row(table, row('svit_micro', seed=seed, mIoU=value, test_mIoU=value - 3))
    sentences = report(table, tmp_path / 'x.md', tmp_path / 'x.png')
    text = (tmp_path / 'x.md').read_text()
    assert '| model | mIoU, test | mIoU, val | seeds |' in text
    assert '| svit_micro | **47.0** [43.0, 57.0] | **50.0** [46.0, 60.0] | 3 |' in text
    assert '| timm_resnet | - | 40.0 [36.0, 50.0] | 3 |' in text
    assert ' on val,' in sentences[1]
    append_row(table, row('timm_resnet', seed=0, mIoU=40, test_mIoU=41))
    report(table, tmp_path / 'x.md', tmp_path / 'x.png')
    assert '| timm_resnet | 41.0 | 40.0 [36.0, 50.0] | 1 test, 3 val |' in (tmp_path / 'x.md').read_text()
    for seed in 1, 2:
        append_row(table, row('timm_resnet', seed=seed, mIoU=40, test_mIoU=90))
    sentences = report(table, tmp_path / 'x.md', tmp_path / 'x.png')
    assert ' on test,' in sentences[1] and 'svit_micro in segmentation' not in sentences[-1]


def test_report_needs_rows_and_markers(table, tmp_path):
    (tmp_path / 'x.md').write_text('no markers')
    with pytest.raises(ValueError, match='markers|no <!--'):
        report(table, tmp_path / 'x.md', tmp_path / 'x.png')
    with pytest.raises(ValueError, match='no rows'):
        report(tmp_path / 'none.csv', tmp_path / 'y.md', tmp_path / 'x.png')


@pytest.mark.parametrize('module', ['dense', 'reduction', 'reduction.latency'])
def test_a_page_that_cannot_be_written_is_refused_before_work(module, tmp_path):
    (tmp_path / 'x.md').write_text('no markers')
    for page, message in (tmp_path / 'x.md', 'no <!--'), (tmp_path, 'expected a Markdown file'):
        command = [sys.executable, '-m', f'benchmarks.{module}', '--csv', str(tmp_path / 'x.csv'), '--page', str(page)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


# ---- models

@pytest.mark.slow
def test_baselines_cost_what_svit_costs():
    aim = cost('svit_micro', 'detection')
    for model in 'timm_swin', 'timm_resnet':
        assert abs(cost(model, 'detection')['macs'] / aim['macs'] - 1) < 0.1
    assert cost('timm_swin', 'classification')['input'] == '48x48' and aim['input'] == '128x160'


# what is learnt to recover knows the size of the scenes alone, and the images of detectors here are of another
@pytest.mark.parametrize('model, task', [
    pytest.param(model, 'segmentation' if model.endswith('_learnt') else 'detection', marks=pytest.mark.slow) for model in plan.MODELS] + [
    ('svit_micro', task) for task in ('detection', 'segmentation', 'classification')])
def test_every_model_learns_in_every_recipe(model, task):
    torch.manual_seed(0)
    cfg = row_config(model, task)
    data = batch(cfg)
    if model.endswith('_learnt'):
        data['inputs'] = [image[:, :plan.SCENE[0], :plan.SCENE[1]] for image in data['inputs']]
        for sample in data['data_samples']:
            sample.gt_sem_seg = type(sample.gt_sem_seg)(data=sample.gt_sem_seg.data[:, :plan.SCENE[0], :plan.SCENE[1]])
            sample.set_metainfo(dict(img_shape=plan.SCENE, ori_shape=plan.SCENE))
    elif task == 'segmentation':
        cfg.model.data_preprocessor.size = (131, 167)
    elif task == 'classification':
        data[0] = data[0][..., :48, :48] / 255
    built = build(cfg).train()
    data = built.data_preprocessor(data, training=True)
    loss = total(built(**data, mode='loss') if isinstance(data, dict) else built(*data, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in built.parameters() if p.requires_grad)
