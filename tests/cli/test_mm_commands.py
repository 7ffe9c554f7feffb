"""`vitzoo predict --config --checkpoint` and `vitzoo demo`."""
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vitzoo_cli import main

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('sklearn')
from mmengine.config import Config  # noqa: E402
from pycocotools.mask import decode, frPyObjects  # noqa: E402


def untrained(name, tmp_path, **changes):
    """A config as a file, and a checkpoint for it with random weights as the Runner would save it."""
    import torch
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import save_checkpoint

    import vitzoo.mm
    cfg = vitzoo.mm.setup(vitzoo.mm.config_path(name), cfg_options=changes)
    cfg.dump(tmp_path / 'config.py')
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    meta = {'dataset_meta': {k.lower(): v for k, v in cfg.get('metainfo', {}).items()}}
    save_checkpoint({'state_dict': model.state_dict(), 'meta': meta}, str(tmp_path / 'weights.pth'))
    files = {'--config': 'config.py', '--checkpoint': 'weights.pth', '--out': 'out'}
    return [word for option, name in files.items() for word in (option, str(tmp_path / name))] + ['--json']


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / 'scene.png'
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (128, 160, 3), np.uint8)).save(path)
    return str(path)


def test_a_detector(tmp_path, scene, capsys):
    options = untrained('detection/mask-rcnn_svit_micro_digits', tmp_path)
    capsys.readouterr()
    assert main(['predict', scene, *options, '--threshold', '0.05']) == 0
    captured = capsys.readouterr()
    assert captured.err == 'loading PyTorch and the model ...\n'  # and no word of the libraries
    report = json.loads(captured.out)
    assert report['task'] == 'detection' and report['classes'][9] == 'digit 9'
    objects = report['images'][0]['objects']
    assert objects and all(o['score'] >= 0.05 and o['name'] == f'digit {o["label"]}' for o in objects)
    assert all(0 <= o['box'][0] <= o['box'][2] <= 160 and 0 <= o['box'][1] <= o['box'][3] <= 128 for o in objects)
    assert [o['score'] for o in objects] == sorted((o['score'] for o in objects), reverse=True)
    assert Image.open(report['images'][0]['picture']).size == (640, 512)
    masks = [decode(frPyObjects(o['mask'], *o['mask']['size'])) for o in objects]
    assert all(m.shape == (128, 160) for m in masks) and any(m.any() for m in masks)


def test_a_segmentor(tmp_path, scene, capsys):
    options = untrained('segmentation/fpn_svit_micro_digits', tmp_path)
    capsys.readouterr()
    assert main(['predict', scene, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['task'] == 'segmentation' and len(report['classes']) == 11
    found = report['images'][0]
    assert sum(c['share'] for c in found['classes']) == pytest.approx(1)
    labels = np.asarray(Image.open(found['labels']))
    assert {c['class']: c['share'] for c in found['classes']} == \
        {i: pytest.approx(n / labels.size) for i, n in enumerate(np.bincount(labels.ravel())) if n}


@pytest.mark.slow
def test_a_segmentor_sees_images_as_its_test_data_say(tmp_path, scene, capsys):
    """Not as the `test_pipeline` of the config says, which may have been left behind."""
    import vitzoo.mm
    cfg = vitzoo.mm.setup(vitzoo.mm.config_path('segmentation/fpn_svit_micro_digits'))
    options = untrained('segmentation/fpn_svit_micro_digits', tmp_path)
    files = dict(zip(options[::2], options[1::2], strict=False))
    right = Config.fromfile(files['--config'])
    pipeline = cfg.test_dataloader.dataset.pipeline
    smaller = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32), keep_ratio=False), pipeline[-1]]
    found = []
    for data, left_behind in (pipeline, None), (pipeline, smaller), (smaller, pipeline):
        right.test_dataloader.dataset.pipeline = data
        right.pop('test_pipeline', None)
        if left_behind:
            right.test_pipeline = left_behind
        right.dump(files['--config'])
        capsys.readouterr()
        assert main(['predict', scene, *options]) == 0
        found.append(json.loads(capsys.readouterr().out)['images'][0]['classes'])
    assert found[0] == found[1] != found[2]


def test_class_names_of_checkpoints(tmp_path):
    from vitzoo_cli.mm_predictor import _class_names
    data = dict(type='Y', metainfo=dict(classes=['of data']), pipeline=[])
    cfg = Config(dict(test_dataloader=dict(dataset=dict(type='X', dataset=data))))
    for meta, expected in (
            (dict(dataset_meta=dict(CLASSES=('a', 'b'))), ('a', 'b')), (dict(CLASSES=['c']), ('c',)), (dict(), ('of data',)),
            (['no dict'], ('of data',)), (dict(dataset_meta=3), ('of data',))):
        assert _class_names(dict(meta=meta), cfg) == expected
    for wrong in 3, 'abc', [1, 2]:
        with pytest.raises(ValueError, match='expected a list of names'):
            _class_names(dict(meta=dict(CLASSES=wrong)), cfg)


def test_a_classifier(tmp_path, scene, capsys):
    import timm
    import torch
    from timm.data import create_transform
    options = untrained('classification/svit_micro_digits', tmp_path)
    capsys.readouterr()
    assert main(['predict', scene, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['task'] == 'classification' and report['classes'] == [str(i) for i in range(10)]
    best = report['images'][0]['classes'][0]

    model = timm.create_model('svit_micro', num_classes=10).eval()
    weights = torch.load(tmp_path / 'weights.pth', weights_only=True)['state_dict']
    model.load_state_dict({key.removeprefix('model.'): value for key, value in weights.items()})
    dataset = Config.fromfile(tmp_path / 'config.py').test_dataloader.dataset
    with torch.inference_mode():
        expected = model(create_transform(dataset.input_size, crop_pct=dataset.crop_pct)(Image.open(scene))[None]).softmax(1)[0]
    assert (best['class'], best['probability']) == (expected.argmax().item(), pytest.approx(expected.max().item(), abs=1e-5))


@pytest.mark.parametrize('name', ['detection/mask-rcnn_svit_micro_digits', 'classification/svit_micro_digits'])
def test_checkpoint_of_another_model(name, tmp_path, scene, capsys):
    import torch
    options = untrained(name, tmp_path)
    torch.save({'state_dict': {'x': torch.zeros(1)}}, tmp_path / 'weights.pth')
    capsys.readouterr()
    assert main(['predict', scene, *options]) == 2
    assert 'weights.pth' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_files_that_are_missing_and_configs_of_others(tmp_path, scene, capsys):
    common = ['--checkpoint', scene, '--out', str(tmp_path / 'out')]
    assert main(['predict', scene, '--config', str(tmp_path / 'none.py'), *common]) == 2
    assert 'none.py: no such file' in capsys.readouterr().err
    (tmp_path / 'other.py').write_text("default_scope = 'mmpretrain'\n")
    assert main(['predict', scene, '--config', str(tmp_path / 'other.py'), *common]) == 2
    assert "default_scope='mmpretrain'" in capsys.readouterr().err


@pytest.mark.parametrize('arguments, message', [
    (['--iterations', '0'], '--iterations 0'),
    (['--preset', 'huge'], 'huge'),
    (['--seed', '-1'], 'seed -1'),
])
def test_demo_refuses(tmp_path, capsys, arguments, message):
    assert main(['demo', '--out', str(tmp_path / 'out'), '--data', str(tmp_path / 'data'), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', ['report.json', 'training.log', 'training/iter_1.pth'])
def test_demo_replaces_nothing_of_others(name, tmp_path, capsys):
    path = tmp_path / 'out' / name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    assert main(['demo', '--out', str(tmp_path / 'out'), '--data', str(tmp_path / 'data')]) == 2
    assert '--force' in capsys.readouterr().err and path.read_text() == 'mine' and not (tmp_path / 'data').exists()


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxscript')
    monkeypatch.setenv('DIGIT_SCENES', '')  # the demo sets it
    assert main(['demo', '--out', str(tmp_path / 'out'), '--data', str(tmp_path / 'data'), '--preset', 'micro', '--iterations', '2',
                 '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['training']['iterations'] == 2 and result['data']['test'] == 12 and 0 <= result['evaluation']['box_mAP'] <= 1
    assert result['onnx']['max_error'] < 1e-5 and result['onnx']['input_size'] == [3, 128, 160]
    assert all((tmp_path / 'out' in p.parents and p.is_file()) for p in map(type(tmp_path), result['files'].values()))

    from vitzoo_cli.demo import _refuse_to_replace
    _refuse_to_replace(tmp_path / 'out', False)  # another run may write there

    # what it wrote serves the other commands
    scene, files = str(tmp_path / 'data' / 'detection' / 'test' / '000000.png'), result['files']
    assert len(result['next']) == 3
    for line in result['next']:
        command, *arguments = shlex.split(line)
        assert command == 'vitzoo' and main(arguments) == 0, line
    assert main(['predict', scene, '--onnx', files['ONNX'], '--out', str(tmp_path / 'b')]) == 0
    assert main(['convert', 'svit_micro', files['checkpoint'], '--features', '--out', str(tmp_path / 'x.safetensors')]) == 0


@pytest.mark.parametrize('name, what', [
    pytest.param('detection/retinanet_svit_micro_digits', 'objects', marks=pytest.mark.slow),
    pytest.param('segmentation/fpn_svit_micro_digits', 'classes', marks=pytest.mark.slow),
    *(pytest.param(f'detection/{head}_svit_micro_digits', 'objects', marks=pytest.mark.slow)
      for head in ('cascade-mask-rcnn', 'atss', 'fcos', 'deformable-detr', 'dino')),
    pytest.param('detection/mask-rcnn_svit_micro_digits', 'objects', marks=pytest.mark.slow)])
def test_a_config_exported_finds_the_same_without_torch(name, what, tmp_path, scene, capsys):
    pytest.importorskip('onnxruntime')
    import torch
    options = untrained(name, tmp_path)
    checkpoint = torch.load(tmp_path / 'weights.pth', weights_only=True)
    for key, value in checkpoint['state_dict'].items():
        if 'bbox_head' in key and value.ndim > 1:
            # with equal scores, order is chance
            torch.nn.init.normal_(value, std=0.5 / value[0].numel() ** 0.5 * (3 if 'cls' in key else 1))
    torch.save(checkpoint, tmp_path / 'weights.pth')
    files = dict(zip(options[::2], options[1::2], strict=False))
    onnx = str(tmp_path / 'model.onnx')
    assert main(['export', '--config', files['--config'], '--checkpoint', files['--checkpoint'], '--out', onnx, '--size', '128x160',
                 '--opset', '17', '--json']) == 0
    capsys.readouterr()
    without = 'import sys\nfor name in "torch", "torchvision", "timm", "vitzoo", "mmengine", "mmdet": sys.modules[name] = None\n' \
              'from vitzoo_cli import main\nsys.exit(main(sys.argv[1:]))'
    command = ['predict', scene, '--onnx', onnx, '--out', str(tmp_path / 'out'), '--json', '--threshold', '0']
    done = subprocess.run([sys.executable, '-c', without, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(['predict', scene, *options, '--threshold', '0']) == 0
    results = [json.loads(text)['images'][0] for text in (done.stdout, capsys.readouterr().out)]
    found, expected = (result[what] for result in results)
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        assert got['name'] == want['name']
        if what == 'objects':
            assert got['score'] == pytest.approx(want['score'], abs=1e-5) and got['box'] == pytest.approx(want['box'], abs=0.1)
            if 'mask' in want:
                mask, expected = (decode(frPyObjects(o['mask'], *o['mask']['size'])) for o in (got, want))
                assert (mask != expected).mean() < 1e-3
        else:
            assert got['share'] == pytest.approx(want['share'], abs=1e-3)
    assert Image.open(results[0]['picture']).size == Image.open(results[1]['picture']).size


@pytest.mark.parametrize('words, reason', [
    (['svit_micro', '--config', 'c.py'], 'either'), ([], 'either'), (['--config', 'c.py'], '--size'),
    (['--config', 'c.py', '--checkpoint', 'k.pth', '--size', '64', '--features'], 'alone')])
def test_export_of_a_config_needs_its_files(words, reason, tmp_path, capsys):
    assert main(['export', *words, '--out', str(tmp_path / 'x.onnx')]) == 2
    assert reason in capsys.readouterr().err
