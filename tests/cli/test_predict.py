"""`vitzoo predict --onnx`: what it needs, what it finds, what it writes, and what it says of files it cannot read."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitzoo_cli import main
from vitzoo_cli.files import find_images
from vitzoo_runtime.onnx_model import OnnxModel

ROOT = Path(__file__).parents[2]
ONLY_NUMPY_PILLOW_ONNXRUNTIME = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'torch', 'torchvision', 'timm', 'vitzoo', 'rich', 'onnx', 'mmengine', 'safetensors', 'sklearn'}:
            raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
from vitzoo_cli import main
sys.exit(main())
"""


def predict(capsys, *arguments):
    status = main(['predict', *map(str, arguments), '--json'])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


@pytest.mark.parametrize('task, as_json', [('classification', False), ('classification', True), ('segmentation', True)])
def test_without_torch_timm_vitzoo_and_rich(tiny_onnx, images, tmp_path, task, as_json):
    command = [sys.executable, '-c', ONLY_NUMPY_PILLOW_ONNXRUNTIME, 'predict', images / 'red.png', images / 'more', '--onnx',
               tiny_onnx(task=task), '--out', tmp_path / 'out', *(['--json'] if as_json else [])]
    done = subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert {Path(i['image']).name: i['classes'][0]['name'] for i in report['images']} == \
        {'red.png': 'reddish', 'x.png': 'greenish', 'x.JPG': 'bluish'}
    assert (json.loads(done.stdout) == report) if as_json else ('greenish' in done.stdout and 'Traceback' not in done.stderr)


def test_probabilities_pictures_and_broken_files(tiny_onnx, images, tmp_path, capsys):
    status, report, error = predict(capsys, images, '--onnx', tiny_onnx(), '--out', tmp_path / 'out')
    assert status == 1 and [Path(f['image']).name for f in report['failed']] == ['broken.jpeg'] and 'broken.jpeg' in error
    assert len(report['images']) == 3
    for found in report['images']:
        probabilities = [c['probability'] for c in found['classes']]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1)
        assert Image.open(found['picture']).width >= 320
    red = next(i for i in report['images'] if i['image'].endswith('red.png'))
    logits = 10 * (np.array([250, 60, 50]) / 255 - [.5, .4, .3]) / [.2, .25, .3]
    expected = np.exp(logits - logits.max())
    assert red['classes'][0] == {'class': 0, 'name': 'reddish', 'probability': pytest.approx(expected[0] / expected.sum(), abs=1e-5)}
    written = sorted(p.relative_to(tmp_path / 'out').as_posix() for p in (tmp_path / 'out').rglob('*') if p.is_file())
    assert written == ['more/x-2.png', 'more/x.png', 'predictions.json', 'red.png']


def test_an_image_that_the_model_cannot_take(tiny_onnx, images, tmp_path, monkeypatch, capsys):
    classify = OnnxModel.classify

    def refuse_upright(self, image):
        if image.height > image.width:
            raise ValueError('too narrow')
        return classify(self, image)
    monkeypatch.setattr(OnnxModel, 'classify', refuse_upright)
    status, report, error = predict(capsys, images / 'red.png', images / 'more', '--onnx', tiny_onnx(), '--out', tmp_path / 'out')
    assert status == 1 and 'x.png was skipped (ValueError: too narrow)' in error
    assert [Path(i['image']).name for i in report['images']] == ['red.png', 'x.JPG']
    assert [f['error'] for f in report['failed']] == ['ValueError: too narrow']


def test_again_into_a_folder_among_the_images(tiny_onnx, images, capsys):
    model = tiny_onnx()
    first = predict(capsys, images, '--onnx', model, '--out', images / 'out')[1]
    assert predict(capsys, images, '--onnx', model, '--out', images / 'out')[1] == first


def test_features(tiny_onnx, images, tmp_path, capsys):
    status, report, _ = predict(capsys, images / 'red.png', '--onnx', tiny_onnx(task='features'), '--out', tmp_path / 'out')
    assert status == 0
    features = report['images'][0]['features']
    length = pytest.approx(np.linalg.norm((np.array([250, 60, 50]) / 255 - [.5, .4, .3]) / [.2, .25, .3]), rel=1e-5)
    assert features['feat0'] == {'shape': [3, 24, 24], 'mean_length': length, 'longest': length}
    assert features['feat1']['shape'] == [3, 12, 12]
    assert Image.open(report['images'][0]['picture']).size[0] > 3 * 200


def test_table_for_people(tiny_onnx, images, tmp_path, capsys):
    assert main(['predict', str(images), '--onnx', str(tiny_onnx(class_names=None)), '--out', str(tmp_path / 'out')]) == 1
    captured = capsys.readouterr()
    assert all(word in captured.out for word in ('red.png', 'class 0', '%', '3 images'))
    assert 'broken.jpeg was skipped' in captured.err


@pytest.mark.parametrize('arguments, message', [
    (['red.png'], 'either --onnx FILE or both'),
    (['red.png', '--config', 'c.py'], 'either --onnx FILE or both'),
    (['red.png', '--onnx', 'missing.onnx'], 'no such ONNX file'),
    (['red.png', '--onnx', 'notes.txt'], 'cannot read this file'),
    (['missing.png', '--onnx', 'tiny.onnx'], 'missing.png: no such file or folder'),
    (['empty', '--onnx', 'tiny.onnx'], 'no image found'),
    (['red.png', '--onnx', 'tiny.onnx', '--threshold', '2'], 'expected 0 to 1'),
])
def test_bad_arguments(tiny_onnx, images, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(images)
    tiny_onnx().rename(images / 'tiny.onnx')
    (images / 'empty').mkdir()
    assert main(['predict', *arguments, '--out', 'out']) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('vitzoo: ') and captured.err.count('\n') == 1 and message in captured.err
    assert not (images / 'out').exists()


@pytest.mark.parametrize('changes, message', [
    (dict(mean=..., std=...), 'no mean, std in its metadata'),
    (dict(task='boxes'), "the task 'boxes'"),
    (dict(interpolation='guess'), "interpolation='guess'"),
    (dict(mean=[.5]), 'as many means'),
])
def test_file_of_another_kind(tiny_onnx, images, tmp_path, capsys, changes, message):
    assert main(['predict', str(images), '--onnx', str(tiny_onnx(**changes)), '--out', str(tmp_path / 'out')]) == 2
    assert message in capsys.readouterr().err


def test_pictures_have_names_of_their_own(tmp_path):
    for name in ('a/x.png', 'a/x.jpg', 'a/x-2.png', 'b/x.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([str(tmp_path / 'a'), str(tmp_path / 'b'), str(tmp_path / 'a' / 'x.png')], tmp_path / 'out')
    assert len(found) == 4 and len(set(found.values())) == 4
