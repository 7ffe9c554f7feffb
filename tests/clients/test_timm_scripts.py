"""timm's own scripts over our models, in other processes, by `python -m vitzoo timm`. They lie in timm's repository alone: TIMM_SCRIPTS
names a folder where they are."""
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zoo
from PIL import Image

import vitzoo

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get('TIMM_SCRIPTS')
pytestmark = pytest.mark.skipif(not FOLDER, reason="TIMM_SCRIPTS does not name a folder with timm's train.py, which pip does not install")
SIZE, BATCH = ('--img-size', '64'), ('--batch-size', '4')
# models whose parts differ most: batch norms, tokens in columns, a choice
SOME = zoo.FIRST['cas_vit'], zoo.FIRST['stvit_deit'], zoo.FIRST['biformer']


def run(cwd, script, *arguments):
    command = [sys.executable, '-m', 'vitzoo', 'timm', str(Path(FOLDER, script).resolve()), *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(command, cwd=cwd, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def result(stdout):
    return json.loads(stdout.split('--result')[-1])


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Two classes in two parts, as a folder of folders."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for part in 'train', 'validation':
        for name in 'bright', 'dark':
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 100, (70, 80, 3), dtype=np.uint8) + (100 if name == 'bright' else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{name}{i}.png')
    return root


@pytest.fixture(scope='module', params=SOME)
def trained(request, images, tmp_path_factory):
    """The model's name, and a folder with what train.py left in runs/one."""
    cwd, name = tmp_path_factory.mktemp('timm'), request.param
    run(cwd, 'train.py', '--data-dir', images, '--model', name, '--num-classes', 2, *SIZE, *BATCH, '--epochs', 2, '--warmup-epochs', 0,
        '--workers', 1, '--model-ema', '--layer-decay', 0.7, '--opt', 'adamw', '--lr', 1e-3, '--device', 'cpu', '--output', 'runs',
        '--experiment', 'one')
    return name, cwd


def test_validate(trained, images):
    name, cwd = trained
    best = cwd / 'runs' / 'one' / 'model_best.pth.tar'
    with (best.parent / 'summary.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 2
    for use_ema in ((), ('--use-ema',)):
        found = result(run(cwd, 'validate.py', '--data-dir', images, '--split', 'validation', '--model', name, '--num-classes', 2, *SIZE,
                           *BATCH, '--workers', 1, '--checkpoint', best, '--device', 'cpu', *use_ema))
        assert found['model'] == name and 0 <= found['top1'] <= 100 and found['top5'] == 100


def test_checkpoints_are_read_by_ours(trained):
    name, cwd = trained
    for use_ema in False, True:
        model = timm.create_model(name, num_classes=2)
        report = vitzoo.load_checkpoint(model, cwd / 'runs' / 'one' / 'last.pth.tar', use_ema=use_ema)
        assert not report.new and len(report.loaded) == len(model.state_dict())


def test_average_and_clean(trained):
    name, cwd = trained
    run(cwd, 'avg_checkpoints.py', '--input', 'runs/one', '--output', 'average.pth')
    run(cwd, 'clean_checkpoint.py', '--checkpoint', 'runs/one/last.pth.tar', '--output', 'clean.pth', '--no-hash')
    for file in 'average.pth', 'clean.pth':
        assert not vitzoo.load_checkpoint(timm.create_model(name, num_classes=2), cwd / file).new


def test_infer(trained, images):
    pytest.importorskip('pandas', reason="timm's inference.py writes by it")
    name, cwd = trained
    run(cwd, 'inference.py', '--data-dir', images / 'validation', '--model', name, '--num-classes', 2, *SIZE, *BATCH, '--workers', 1,
        '--checkpoint', 'runs/one/last.pth.tar', '--device', 'cpu', '--results-dir', 'found', '--results-format', 'json', '--topk', 1)
    file, = (cwd / 'found').glob('*.json')
    assert len(json.loads(file.read_text())) == 12


@pytest.mark.parametrize('bench', ['infer', 'train', 'profile'])
@pytest.mark.parametrize('name', SOME)
def test_benchmark(name, bench, tmp_path):
    if bench == 'profile':
        pytest.importorskip('fvcore')
    found = result(run(tmp_path, 'benchmark.py', '--model', name, *SIZE, '--batch-size', 2, '--bench', bench, '--num-warm-iter', 1,
                       '--num-bench-iter', 10, '--device', 'cpu'))
    assert found['model'] == name and found['param_count'] > 0


@pytest.mark.parametrize('name', zoo.FIRST.values())
def test_onnx_export(name, tmp_path):
    """By torch's older exporter, with its own check. Without a checkpoint it downloads published weights, or fails where there are none."""
    pytest.importorskip('onnxruntime')
    torch.save(timm.create_model(name, num_classes=2).state_dict(), tmp_path / 'model.pth')
    run(tmp_path, 'onnx_export.py', '--model', name, *SIZE, '--num-classes', 2, '--checkpoint', 'model.pth', '--check-forward',
        'model.onnx')
    assert (tmp_path / 'model.onnx').stat().st_size > 1e5


def test_scripts_that_start_others(tmp_path):
    """bulk_runner.py starts a program for each model: ours."""
    ours = [sys.executable, '-m', 'vitzoo', 'timm', Path(FOLDER, 'benchmark.py').resolve()]
    run(tmp_path, 'bulk_runner.py', '--model-list', 'svit_mic*', '--results-file', 'all.csv', '--no_python', 1, *ours, '--bench', 'infer',
        *SIZE, '--batch-size', 2, '--num-warm-iter', 1, '--num-bench-iter', 10, '--device', 'cpu')
    with (tmp_path / 'all.csv').open() as file:
        assert [row['model'] for row in csv.DictReader(file)] == ['svit_micro']
