"""`vitzoo predict --onnx` on damaged files, files of another kind and full disks: one line says so, nothing is half-written."""
import errno
import json
import os

import pytest
from PIL import Image

from vitzoo_cli import main
from vitzoo_runtime.onnx_model import OnnxModel


def predict(capsys, picture, model, out):
    """Status and the one or two lines on standard error."""
    status = main(['predict', str(picture), '--onnx', str(model), '--out', str(out), '--json'])
    error = capsys.readouterr().err
    assert 'Traceback' not in error and all(line.startswith('vitzoo: ') and len(line) < 1200 for line in error.splitlines())
    return status, error


@pytest.mark.parametrize('share', [0, 0.01, 0.3, 0.9, 0.999])
def test_truncated(tiny_onnx, images, tmp_path, capsys, share):
    model = tiny_onnx()
    data = model.read_bytes()
    model.write_bytes(data[:int(share * len(data))])
    status, error = predict(capsys, images / 'red.png', model, tmp_path / 'out')
    assert status == 2 and 'tiny.onnx' in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('step', [61, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_bits(tiny_onnx, images, tmp_path, capsys, step):
    """What is noticed is refused by one line; what is a file all the same, with another weight or name, is used."""
    model, out = tiny_onnx(), tmp_path / 'out'
    data, refused = model.read_bytes(), 0
    for place in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        model.write_bytes(damaged)
        status, error = predict(capsys, images / 'red.png', model, out)
        refused += status == 2
        if status == 2:
            assert error.count('\n') == 1
        elif out.exists():
            report = json.loads((out / 'predictions.json').read_text())
            assert len(report['images']) + len(report['failed']) == 1 and (status == 1) == bool(report['failed'])
    assert refused > 0


@pytest.mark.parametrize('content', [b'', b'\0' * 1000, b'PK\x03\x04' + bytes(100), b'{"a": 1}', b'\x80\x04K\x01.', 'picture'])
def test_files_of_another_kind(images, tmp_path, capsys, content):
    model = tmp_path / 'model.onnx'
    model.write_bytes((images / 'red.png').read_bytes() if content == 'picture' else content)
    status, error = predict(capsys, images / 'red.png', model, tmp_path / 'out')
    assert status == 2 and 'model.onnx' in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('change', ['float64 input', 'uint8 input', 'three axes', 'two inputs', 'another name', 'text output'])
def test_graphs_with_other_inputs_and_outputs(tiny_onnx, images, tmp_path, capsys, change):
    onnx = pytest.importorskip('onnx')
    model = tiny_onnx()
    proto = onnx.load(model)
    graph, image = proto.graph, proto.graph.input[0]
    if change.endswith('input'):
        image.type.tensor_type.elem_type = {'float64': onnx.TensorProto.DOUBLE, 'uint8': onnx.TensorProto.UINT8}[change.split()[0]]
        graph.node.insert(0, onnx.helper.make_node('Cast', ['image'], ['cast'], to=onnx.TensorProto.FLOAT))
        graph.node[1].input[0] = 'cast'
    elif change == 'three axes':
        del image.type.tensor_type.shape.dim[0]
    elif change == 'two inputs':
        graph.input.append(onnx.helper.make_tensor_value_info('mask', onnx.TensorProto.FLOAT, [1]))
    elif change == 'another name':
        image.name = graph.node[0].input[0] = 'pixels'
    else:
        graph.node[-1].output[0] = 'numbers'
        graph.node.append(onnx.helper.make_node('Cast', ['numbers'], ['logits'], to=onnx.TensorProto.STRING))
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    onnx.save(proto, model)
    status, error = predict(capsys, images / 'red.png', model, tmp_path / 'out')
    assert status == (1 if change == 'text output' else 2) and error.count('\n') == 1
    assert status == 1 or 'cannot' in error and not (tmp_path / 'out').exists()


@pytest.fixture
def full_disk(monkeypatch):
    """Pictures and texts stop in the middle."""
    def write_half(path, data, *args, **kwargs):
        with open(path, 'wb') as file:
            file.write(b'half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Image.Image, 'save', lambda self, path, *args, **kwargs: write_half(path, None))
    monkeypatch.setattr('pathlib.Path.write_text', write_half)


def test_full_disk(tiny_onnx, images, tmp_path, capsys, full_disk):
    out = tmp_path / 'out'
    status, error = predict(capsys, images / 'red.png', tiny_onnx(), out)
    assert status == 1 and 'No space left on device' in error and list(out.iterdir()) == []


def test_full_disk_keeps_what_an_earlier_run_wrote(tiny_onnx, images, tmp_path, capsys, request):
    out, model = tmp_path / 'out', tiny_onnx()
    assert predict(capsys, images / 'red.png', model, out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    request.getfixturevalue('full_disk')
    assert predict(capsys, images / 'red.png', model, out)[0] == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root writes everywhere')
def test_folder_that_cannot_be_written(tiny_onnx, images, tmp_path, capsys):
    closed = tmp_path / 'closed'
    closed.mkdir(mode=0o500)
    status, error = predict(capsys, images / 'red.png', tiny_onnx(), closed / 'out')
    assert status == 2 and 'closed' in error


@pytest.mark.parametrize('target', ['/proc/none/out', '/dev/null/out'])
def test_target_that_is_no_place_for_files(tiny_onnx, images, capsys, target):
    if not os.path.exists(os.path.dirname(os.path.dirname(target))):
        pytest.skip(f'no {target}')
    status, error = predict(capsys, images / 'red.png', tiny_onnx(), target)
    assert status in (1, 2) and error.count('\n') == 1


def test_image_of_another_size_or_type_than_the_file_takes(tiny_onnx):
    """Straight to the runtime, past the preparation that makes any picture fit."""
    model = OnnxModel(tiny_onnx())
    found = model.run(Image.new('L', (500, 3)).convert('RGB'))
    assert found['logits'].shape == (3,)
