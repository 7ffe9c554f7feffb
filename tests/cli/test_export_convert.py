"""`vitzoo export` and `vitzoo convert`."""
import hashlib
import json

import golden
import pytest
import timm
import torch
import zoo

import vitzoo
from vitzoo_cli import main


@pytest.fixture
def checkpoint(tmp_path):
    """A training checkpoint of svit_micro with 10 classes, with the prefixes that data parallelism leaves."""
    torch.manual_seed(0)
    state = timm.create_model('svit_micro', num_classes=10).state_dict()
    torch.save({'model': {f'module.{key}': value for key, value in state.items()}, 'epoch': 3}, tmp_path / 'published.pth')
    return tmp_path / 'published.pth', state


def convert(checkpoint, out, *more, model='svit_micro'):
    return main(['convert', model, str(checkpoint), '--out', str(out), *more])


def test_convert(checkpoint, tmp_path, capsys):
    safetensors = pytest.importorskip('safetensors')
    path, state = checkpoint
    out = tmp_path / 'ours.safetensors'
    assert convert(path, out, '--num-classes', '10', '--license', 'MIT', '--json') == 0
    with safetensors.safe_open(out, 'pt') as file:
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(key), value) for key, value in state.items())
        metadata = file.metadata()
    assert metadata == json.loads(capsys.readouterr().out)['metadata']
    assert metadata['source_sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (metadata['source'], metadata['model'], metadata['license'], metadata['vitzoo'], metadata['num_classes']) == \
        ('published.pth', 'svit_micro.untrained', 'MIT', vitzoo.__version__, '10')
    model = timm.create_model('svit_micro', num_classes=10)
    assert not vitzoo.load_checkpoint(model, out).new
    assert torch.equal(model.head.fc.weight, state['head.fc.weight'])

    before = out.read_bytes()
    assert convert(path, out, '--num-classes', '10') == 2
    assert '--force' in capsys.readouterr().err and out.read_bytes() == before
    assert convert(path, out, '--num-classes', '10', '--force') == 0


def test_convert_a_dense_backbone(tmp_path):
    state = vitzoo.DenseBackbone('svit_micro').model.state_dict()
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in state.items()}}, tmp_path / 'detector.pth')
    assert convert(tmp_path / 'detector.pth', tmp_path / 'x.safetensors', '--features') == 0
    backbone = vitzoo.DenseBackbone('svit_micro')
    backbone.load(tmp_path / 'x.safetensors')
    assert all(torch.equal(value, state[key]) for key, value in backbone.model.state_dict().items())


@pytest.mark.parametrize('model, message', [('svit_small', 'does not fit'), ('svit_nano', 'unknown model')])
def test_convert_to_the_wrong_model(checkpoint, tmp_path, capsys, model, message):
    assert convert(checkpoint[0], tmp_path / 'x.safetensors', '--num-classes', '10', model=model) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'x.safetensors').exists()


def test_convert_as_it_was_written_before(checkpoint, tmp_path, capsys):
    file, out = str(checkpoint[0]), str(tmp_path / 'x.safetensors')
    assert main(['convert', file, '--model', 'svit_micro', '--num-classes', '10', '--out', out]) == 0
    for words in [file], ['svit_micro', file, '--config', 'c.py']:
        assert main(['convert', *words, '--out', out, '--force']) == 2
        assert 'either MODEL FILE, or FILE and --config' in capsys.readouterr().err


@pytest.mark.parametrize('more, message', [
    ([], 'classifies 10 classes'),
    (['--num-classes', '10', '--features'], 'no classes'),
    (['--num-classes', '10', '--out', 'x.pth'], '.safetensors'),
    (['--num-classes', '10', '--out', 'nowhere/x.safetensors'], 'no folder'),
    (['--num-classes', '10', '--out', 'folder.safetensors', '--force'], 'is a folder'),
])
def test_convert_refuses_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.safetensors').mkdir()
    assert convert(checkpoint[0], tmp_path / 'x.safetensors', *more) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder.safetensors', 'published.pth']


def test_convert_truncated(checkpoint, tmp_path, capsys):
    path = tmp_path / 'short.pth'
    path.write_bytes(checkpoint[0].read_bytes()[:5000])
    assert convert(path, tmp_path / 'x.safetensors') == 2
    assert 'short.pth' in capsys.readouterr().err and not (tmp_path / 'x.safetensors').exists()


def test_export_then_predict(checkpoint, images, tmp_path, capsys):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    (tmp_path / 'names.txt').write_text('\n'.join(f'digit {i}' for i in range(10)) + '\n')
    out = tmp_path / 'micro.onnx'
    assert main(['export', 'svit_micro', '--checkpoint', str(checkpoint[0]), '--classes', str(tmp_path / 'names.txt'), '--size', '48x64',
                 '--opset', '17', '--out', str(out), '--json']) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report['input_size'] == [3, 48, 64] and report['opset'] == 17 and report['max_error'] < 1e-5 and captured.err == ''
    assert report['metadata']['source'] == 'published.pth'

    assert main(['predict', str(images / 'red.png'), '--onnx', str(out), '--out', str(tmp_path / 'out'), '--json']) == 0
    found = json.loads(capsys.readouterr().out)['images'][0]['classes']
    from PIL import Image
    model = timm.create_model('svit_micro', num_classes=10).eval()
    vitzoo.load_checkpoint(model, checkpoint[0])
    transform = timm.data.create_transform((3, 48, 64), mean=report['metadata']['mean'], std=report['metadata']['std'],
                                           interpolation='bicubic', crop_pct=report['metadata']['crop_pct'])
    with torch.no_grad():
        expected = model(transform(Image.open(images / 'red.png'))[None]).softmax(1)[0]
    assert [c['class'] for c in found] == expected.topk(5).indices.tolist()
    assert [c['probability'] for c in found] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
    assert found[0]['name'] == f'digit {found[0]["class"]}'


@pytest.mark.parametrize('family', zoo.first_quick(zoo.FAMILIES))
def test_export_takes_files_as_published(family, tmp_path, monkeypatch):
    """Of families without published weights, those of the ViT that they start from."""
    cases = [path for path in golden.DATA.glob(f'{family}/*.npz') if not zoo.is_large(path.stem)]
    if cases:
        facts, _ = golden.load_case(min(cases, key=lambda path: (len(path.stem), path)))
        name, state = golden.our_name(facts), golden.make_state_dict(facts['entries'])
    else:
        name, = (name for name in zoo.FAMILIES[family] if '_tiny' in name)
        state = timm.create_model('deit_tiny_patch16_224').state_dict()
    torch.save({'model': state, 'epoch': 299}, tmp_path / 'published.pth')
    expected = timm.create_model(name)
    vitzoo.load_checkpoint(expected, state)
    exported = []

    def stop(model, *args, **kwargs):
        exported.append(model)
        raise ValueError('far enough')
    monkeypatch.setattr('vitzoo.export.export_onnx', stop)
    assert main(['export', name, '--checkpoint', str(tmp_path / 'published.pth'), '--out', str(tmp_path / 'x.onnx')]) == 2
    found = exported[0].state_dict()
    loaded = vitzoo.load_checkpoint(expected, state).loaded
    assert loaded and all(torch.equal(found[key], value) for key, value in expected.state_dict().items() if key in loaded)


def test_export_features_of_a_timm_model(tmp_path, capsys):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    out = str(tmp_path / 'f.onnx')
    assert main(['export', 'resnet10t', '--features', '--static-batch', '--opset', '17', '--size', '64', '--out', out]) == 0
    captured = capsys.readouterr()
    assert 'feat0, feat1, feat2, feat3' in captured.out and 'random' in captured.err


def test_export_with_reduced_tokens(tmp_path, capsys):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    out = str(tmp_path / 'r.onnx')
    assert main(['export', 'test_vit', '--reduce', 'tome:r=20', '--static-batch', '--opset', '17', '--out', out, '--json']) == 0
    metadata = json.loads(capsys.readouterr().out)['metadata']
    assert metadata['reduction'] == 'tome r=20' and metadata['model'] == 'test_vit'
    assert main(['export', 'test_vit', '--reduce', 'tome:r=-1', '--out', out]) == 2
    assert 'r=-1' in capsys.readouterr().err


@pytest.mark.parametrize('more, message', [
    (['--reduce', 'tome'], 'SViT: expected timm'),
    (['--features', '--classes', 'names.txt'], 'no classes'),
    (['--classes', 'missing.txt'], 'cannot be read'),
    (['--classes', 'names.txt', '--num-classes', '7'], '--classes says 2 classes'),
    (['--opset', '3'], 'opset=3'),
    (['--classes', 'latin1.txt'], 'latin1.txt: the names of the classes cannot be read'),
    (['--checkpoint', 'missing.pth'], 'missing.pth'),
    (['--pretrained'], 'No program can download'),
])
def test_export_refuses(tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    (tmp_path / 'latin1.txt').write_bytes(b'K\xe4tzchen')
    assert main(['export', 'svit_micro', '--out', 'x.onnx', *more]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'x.onnx').exists()


@pytest.mark.parametrize('out', ['published.pth', 'link.onnx', 'theirs.onnx', 'names.txt'])
def test_export_replaces_nothing_that_is_not_its_own(checkpoint, out, tmp_path, capsys):
    (tmp_path / 'link.onnx').symlink_to(checkpoint[0])
    (tmp_path / 'theirs.onnx').write_bytes(b'theirs')
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefghij'))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert main(['export', 'svit_micro', '--checkpoint', str(checkpoint[0]), '--classes', str(tmp_path / 'names.txt'),
                 '--out', str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert out in error and '--force' in error and error.count('\n') == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_convert_does_not_replace_its_source(checkpoint, tmp_path, capsys):
    source = tmp_path / 'x.safetensors'
    assert convert(checkpoint[0], source, '--num-classes', '10') == 0
    before = source.read_bytes()
    assert convert(source, source, '--num-classes', '10') == 2
    assert '--force' in capsys.readouterr().err and source.read_bytes() == before


@pytest.mark.slow
def test_random_weights_claim_neither_source_nor_classes(tmp_path, capsys):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    onnx = tmp_path / 'x.onnx'
    command = ['export', 'svit_micro', '--size', '32', '--opset', '17', '--static-batch', '--out', str(onnx), '--json']
    assert main(command) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)['metadata']
    assert (said['weights'], said['source'], said['license'], said['class_names']) == ('random', None, None, None)
    assert 'random' in captured.err
    assert main(command) == 0  # replaces its own

    torch.manual_seed(1)
    model = zoo.build('svit_micro')
    torch.save({'model': {k: v + 0.01 if v.is_floating_point() else v for k, v in model.state_dict().items()}}, tmp_path / 'in1k.pth')
    capsys.readouterr()
    assert main([*command, '--checkpoint', str(tmp_path / 'in1k.pth')]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)['metadata']
    assert (said['weights'], said['source'], said['license']) == ('loaded', 'in1k.pth', 'apache-2.0')
    assert len(said['class_names']) == 1000 and 'tench' in said['class_names'][0] and "ImageNet's" in captured.err
