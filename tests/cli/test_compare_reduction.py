"""`vitzoo compare-reduction`: what it prints and writes, and how it refuses."""
import json

import pytest
from PIL import Image

from vitzoo_cli import main
from vitzoo_runtime.files import is_ours

MODEL = 'vit_tiny_patch16_224'


def compare(capsys, *arguments):
    status = main(['compare-reduction', *map(str, arguments), '--json'])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


@pytest.mark.slow
@pytest.mark.parametrize('as_json', [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_folder_of_images(images, tmp_path, capsys, as_json):
    pytest.importorskip('matplotlib')
    (images / 'broken.jpeg').unlink()
    out = tmp_path / 'x.png'
    status = main(['compare-reduction', MODEL, str(images), '--size', '64', '--methods', 'evit', '--setting', 'tome:r=1', '--no-latency',
                   '--out', str(out), *(['--json'] if as_json else [])])
    captured = capsys.readouterr()
    assert status == 0 and 'random' in captured.err
    assert is_ours(out) and Image.open(out).format == 'PNG'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images', 'x.png']  # nothing half written
    if not as_json:
        assert 'tome r=1' in captured.out and 'evit keep_rate=0.7' in captured.out and 'random weights, 3 images' in captured.out
        return
    report = json.loads(captured.out)
    assert report['model'] == MODEL and report['weights'] == 'random' and report['input_size'] == [3, 64, 64]
    assert report['images'] == {'count': 3, 'source': str(images)} and report['picture'] == str(out) and not report['failed']
    plain, tome, *evit = report['settings']
    assert plain['name'] == 'plain' and tome['options'] == {'r': 1} and {row['method'] for row in evit} == {'evit'}
    assert tome['tokens'] == 16 - 12 and 0 < tome['share'] < 1 and 0 <= tome['top1'] <= 1 and tome['latency_ms'] == {}


def test_images_that_come_with_the_installation(capsys):
    for module in 'sklearn', 'matplotlib':
        pytest.importorskip(module)
    status, report, _ = compare(capsys, MODEL, '--size', 32, '--setting', 'tome:r=1', '--no-export', '--rounds', 1, '--most', 4)
    assert status == 0 and report['images']['count'] == 4
    assert all(name in report['images']['source'] for name in ('built in', 'scikit-learn', 'matplotlib', 'digit scenes'))
    assert report['settings'][1]['latency_ms'].keys() == {'eager'}


def test_the_built_in_images_are_different_pictures():
    for module in 'sklearn', 'matplotlib':
        pytest.importorskip(module)
    from vitzoo.datasets.samples import sample_images
    images = sample_images(scenes=2)
    assert len(images) == 3 * 5 + 2 and len({image.tobytes() for image in images.values()}) == len(images)
    assert {image.mode for image in images.values()} == {'RGB'}


def test_a_checkpoint_and_a_broken_image(images, tmp_path, capsys):
    import timm
    import torch
    model = timm.create_model(MODEL, img_size=32)
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    status, report, err = compare(capsys, MODEL, images, '--size', 32, '--setting', 'tome:r=1', '--no-latency', '--checkpoint',
                                  tmp_path / 'x.pth')
    assert status == 1 and report['weights'] == 'loaded' and 'random' not in err
    assert report['images']['count'] == 3 and [failure['image'] for failure in report['failed']] == [str(images / 'broken.jpeg')]
    assert 'broken.jpeg was skipped' in err


@pytest.mark.parametrize('arguments, words', [
    (['nonsense'], ['unknown model']),
    (['resnet18'], ['VisionTransformer or Eva']),
    ([MODEL, '--methods', 'nonsense'], ['nonsense', 'evit', 'tome']),
    ([MODEL, '--setting', 'tome:8'], ['tome:8', 'expected METHOD:OPTION=VALUE']),
    ([MODEL, '--setting', 'tome:x=1'], ["no option 'x'"]),
    ([MODEL, '--setting', 'tome:r=-1', '--size', '32', '--no-latency'], ['tome r=-1', 'expected 0 to']),
    ([MODEL, '--rounds', '0'], ['--rounds 0']),
    ([MODEL, '--size', '8', '--no-latency'], ['8x8']),
    ([MODEL, 'not/there'], ['not/there']),
    ([MODEL, '--out', 'x.jpg'], ['x.jpg', '.png']),
    ([MODEL, '--out', 'not/there/x.png'], ['not/there/x.png', 'folder']),
])
def test_bad_arguments(arguments, words, capsys):
    status, report, err = compare(capsys, *arguments)
    assert status == 2 and report is None and len(err.strip().splitlines()[-1:]) == 1
    assert all(word in err for word in words) and 'Traceback' not in err


def test_another_file_is_not_replaced(images, capsys):
    picture = images / 'more' / 'x.png'
    before = picture.read_bytes()
    status, _, err = compare(capsys, MODEL, images, '--size', 32, '--setting', 'tome:r=1', '--no-latency', '--out', picture)
    assert status == 2 and '--force' in err and picture.read_bytes() == before
