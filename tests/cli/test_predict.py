"""`vitzoo predict --onnx`: what it needs, what it finds, what it writes, and what it says of files it cannot read."""
import json
import os
import subprocess
import sys
from collections import Counter
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
    (dict(task=['classification']), 'the task'),
    (dict(input_size='big'), "size='big'"),
    (dict(input_size=[3, 24]), 'size=(3, 24)'),
    (dict(input_size=[3, 32, 32]), 'but the graph takes'),
    (dict(input_size=[3, 10 ** 9, 10 ** 9]), 'size='),
    (dict(crop_pct=0), 'crop_pct=0'),
    (dict(crop_pct='=NaN'), 'crop_pct=nan'),
    (dict(crop_pct='=' + '[' * 10_000 + ']' * 10_000), 'crop_pct='),
    (dict(std=[0, 1, 1]), 'std='),
    (dict(interpolation=3), 'interpolation=3'),
    (dict(class_names=['one']), 'expected 3 strings'),
    (dict(class_names='abc'), 'expected 3 strings'),
    (dict(class_names=[1, 2, 3]), 'expected 3 strings'),
    (dict(num_classes='3'), "num_classes='3'"),
    (dict(num_classes=10 ** 12, class_names=None), 'num_classes=1000000000000'),
    (dict(num_classes=4, class_names=None), 'the graph gives 3 logits'),
    (dict(task='detection'), 'lacks the output boxes'),
    (dict(task='segmentation', score_threshold='half'), "score_threshold='half'"),
])
def test_file_of_another_kind(tiny_onnx, images, tmp_path, capsys, changes, message):
    assert main(['predict', str(images), '--onnx', str(tiny_onnx(**changes)), '--out', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and len(error) < 600 and not (tmp_path / 'out').exists()


def test_every_line_names_its_image(tiny_onnx, images, tmp_path, capsys):
    """By its path, where two have one name."""
    Image.new('RGB', (30, 30)).save(images / 'x.png')
    assert main(['predict', str(images), '--onnx', str(tiny_onnx()), '--out', str(tmp_path / 'out')]) == 1
    lines = [line.strip('│').split() for line in capsys.readouterr().out.splitlines() if line.startswith('│')]
    counts = Counter(line[0] for line in lines)
    assert counts == {'red.png': 3, 'x.JPG': 3, str(images / 'x.png'): 3, str(images / 'more' / 'x.png'): 3}


def test_pictures_of_other_kinds_are_said(tiny_onnx, images, tmp_path, capsys):
    Image.new('RGB', (30, 30)).save(images / 'more' / 'moving.gif')
    (images / '.hidden.gif').touch()
    status, report, error = predict(capsys, images, '--onnx', tiny_onnx(), '--out', tmp_path / 'out')
    assert [Path(path).name for path in report['left_out']] == ['moving.gif']
    assert 'pictures of other kinds were left out: moving.gif;' in error
    (tmp_path / 'gifs').mkdir()
    for name in 'abcd':
        Image.new('RGB', (30, 30)).save(tmp_path / 'gifs' / f'{name}.gif')
    status, _, error = predict(capsys, tmp_path / 'gifs', '--onnx', tiny_onnx(), '--out', tmp_path / 'out')
    assert status == 2 and 'no image found' in error and 'a.gif, b.gif, c.gif, and 1 more' in error
    # by name it is read: its first picture
    assert predict(capsys, tmp_path / 'gifs' / 'a.gif', '--onnx', tiny_onnx(), '--out', tmp_path / 'out')[0] == 0


def test_pictures_have_names_of_their_own(tmp_path):
    for name in ('a/x.png', 'a/x.jpg', 'a/x-2.png', 'b/x.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([str(tmp_path / 'a'), str(tmp_path / 'b'), str(tmp_path / 'a' / 'x.png')], tmp_path / 'out')
    assert len(found) == 4 and len(set(found.values())) == 4


def test_what_other_tools_add_to_the_metadata_is_no_hindrance(tiny_onnx, images, tmp_path, capsys):
    model = tiny_onnx(**{'onnx.infer': '=onnxruntime.quant'})
    assert predict(capsys, images / 'red.png', '--onnx', model, '--out', tmp_path / 'out')[0] == 0


def test_random_weights_are_spoken_of(tiny_onnx, images, tmp_path, capsys):
    for weights in 'random', 'loaded':
        _, report, error = predict(capsys, images / 'red.png', '--onnx', tiny_onnx(weights=weights), '--out', tmp_path / 'out')
        assert report['weights'] == weights and ('random' in error) == (weights == 'random')


def test_values_that_are_no_numbers_are_reported(tiny_onnx, images, tmp_path, capsys):
    status, report, error = predict(capsys, images / 'red.png', '--onnx', tiny_onnx(scale=np.nan), '--out', tmp_path / 'out')
    assert status == 1 and report['images'] == [] and 'logits with values that are not finite' in report['failed'][0]['error']
    assert 'NaN' not in (tmp_path / 'out' / 'predictions.json').read_text()


def test_a_photograph_is_not_replaced_by_what_is_drawn(tiny_onnx, images, capsys):
    model, before = tiny_onnx(), (images / 'red.png').read_bytes()
    for argument in images / 'red.png', images / 'more' / '..' / 'red.png':
        assert main(['predict', str(argument), '--onnx', str(model), '--out', str(images)]) == 2
        error = capsys.readouterr().err
        assert 'red.png is an input' in error and '--force' in error and error.count('\n') == 1
    (images / 'link').symlink_to(images, target_is_directory=True)
    assert main(['predict', str(images / 'red.png'), '--onnx', str(model), '--out', str(images / 'link')]) == 2
    assert (images / 'red.png').read_bytes() == before and not (images / 'predictions.json').exists()
    assert main(['predict', str(images / 'red.png'), '--onnx', str(model), '--out', str(images), '--force']) == 0
    assert Image.open(images / 'red.png').size != (40, 30)


@pytest.mark.parametrize('name', ['red.png', 'predictions.json'])
def test_files_of_others_are_not_replaced(tiny_onnx, images, tmp_path, capsys, name):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).write_text('mine')
    command = ['predict', str(images / 'red.png'), '--onnx', str(tiny_onnx()), '--out', str(tmp_path / 'out')]
    assert main(command) == 2
    assert f'{name} exists and was not made' in capsys.readouterr().err
    assert [p.name for p in (tmp_path / 'out').iterdir()] == [name] and (tmp_path / 'out' / name).read_text() == 'mine'
    assert main([*command, '--force']) == main(command) == 0  # then it is ours


def test_what_cannot_be_written_is_reported_and_the_rest_goes_on(tiny_onnx, images, tmp_path, capsys):
    picture = (images / 'red.png').read_bytes()
    (images / 'broken.jpeg').unlink()
    (images / f'{"n" * 237}.png').write_bytes(picture)  # fits, as does what is written for it
    (images / f'{"n" * 247}.bmp').write_bytes(picture)
    (images / f'{"m" * 251}.jpg').write_bytes(picture)
    out = tmp_path / 'out'
    (out / 'red.png').mkdir(parents=True)
    (out / 'more').write_text('a file where a folder should be')
    status, report, error = predict(capsys, images, '--onnx', tiny_onnx(), '--out', out)
    assert status == 1 and {Path(f['image']).name for f in report['failed']} == {'red.png', 'x.png', 'x.JPG'}
    assert {Path(i['image']).name[0] for i in report['images']} == {'n', 'm'} and 'red.png was skipped' in error
    written = sorted(p.name for p in out.iterdir())
    assert written == sorted([f'{"n" * 237}.png', f'{"n" * 247}.png', f'{"m" * 251}.png', 'more', 'predictions.json', 'red.png'])


def test_a_label_map_whose_name_does_not_fit_ends_nothing_else(tiny_onnx, images, tmp_path, capsys):
    (images / f'{"n" * 246}.png').write_bytes((images / 'red.png').read_bytes())
    status, report, _ = predict(capsys, images / 'red.png', images / f'{"n" * 246}.png', '--onnx', tiny_onnx(task='segmentation'),
                                '--out', tmp_path / 'out')
    assert status == 1 and len(report['images']) == len(report['failed']) == 1 and 'too long' in report['failed'][0]['error']
    assert not [p.name for p in (tmp_path / 'out').iterdir() if p.name.startswith('.')]


def test_hidden_files_are_no_pictures(tiny_onnx, images, tmp_path, capsys):
    picture = (images / 'red.png').read_bytes()
    (images / '.building').mkdir()
    for name in '.0123456789abcdef.png', '.building/x.png':
        (images / name).write_bytes(picture)
    (images / 'broken.jpeg').unlink()
    assert len(predict(capsys, images, '--onnx', tiny_onnx(), '--out', tmp_path / 'out')[1]['images']) == 3


def test_label_maps_have_names_of_their_own(tiny_onnx, images, tmp_path, capsys):
    (images / 'red.labels.png').write_bytes((images / 'red.png').read_bytes())
    (images / 'broken.jpeg').unlink()
    report = predict(capsys, images, '--onnx', tiny_onnx(task='segmentation'), '--out', tmp_path / 'out')[1]
    files = [found[kind] for found in report['images'] for kind in ('picture', 'labels')]
    assert len(files) == len(set(files)) == 8


def test_names_with_control_characters(tiny_onnx, images, tmp_path, capsys):
    evil = '\x1b[2Jred\n\udc80'
    (images / f'{evil}.png').write_bytes((images / 'red.png').read_bytes())
    model = tiny_onnx(class_names=['a\x1b[31m\nb' + 'c' * 10_000, 'b', 'c'])
    for more in [], ['--json']:
        assert main(['predict', str(images), '--onnx', str(model), '--out', str(tmp_path / 'out'), *more]) == 1
        captured = capsys.readouterr()
        assert '\x1b' not in captured.out + captured.err
        assert '\\x1b[2Jred\\n\\udc80' in captured.out or more
        assert all(len(line) <= 1200 for line in captured.out.splitlines()) or more


CLOSED = {'stdout': '>&-', 'stderr': '2>&-', 'all': '<&- >&- 2>&-', 'nobody reads': '| true'}


@pytest.mark.parametrize('redirection', CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize('as_json', [False, True])
def test_closed_streams(tiny_onnx, images, tmp_path, redirection, as_json):
    tiny_onnx()
    command = f'"{sys.executable}" -m vitzoo_cli predict images/red.png --onnx tiny.onnx --out out {"--json" * as_json} {redirection}'
    done = subprocess.run(['bash', '-o', 'pipefail', '-c', command], env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr and 'Exception' not in done.stderr
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text())['images'][0]['classes'][0]['name'] == 'reddish'


@pytest.mark.parametrize('columns', ['0', '1', '80'])
def test_odd_terminals(tiny_onnx, images, tmp_path, columns):
    """As wide as nothing, and of ASCII alone; what is printed goes to a terminal of its own."""
    pty = pytest.importorskip('pty')
    (images / 'rötlich.png').write_bytes((images / 'red.png').read_bytes())
    command = [sys.executable, '-m', 'vitzoo_cli', 'predict', images / 'rötlich.png', '--onnx', tiny_onnx(), '--out', tmp_path / 'out']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': columns, 'LINES': '0', 'PYTHONIOENCODING': 'ascii', 'TERM': 'xterm'}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b''
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # closed by the other side
            break
    os.close(ours)
    assert process.wait(30) == 0 and b'Traceback' not in said and b'1 images' in said
    assert b'reddish' in said or columns == '1'
