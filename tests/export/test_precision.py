"""Files in 8 and 16 bits: what they compute, when they are kept, what is left behind when they are not."""
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from PIL import Image
from rich.console import Console
from torch import nn

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
ort = pytest.importorskip('onnxruntime')

import vitzoo  # noqa: E402
from vitzoo.export import ExportError, drift, quantise  # noqa: E402
from vitzoo.export.verify import photo  # noqa: E402
from vitzoo_cli import main  # noqa: E402
from vitzoo_runtime.files import images_below  # noqa: E402
from vitzoo_runtime.images import read_image  # noqa: E402
from vitzoo_runtime.onnx_model import OnnxModel  # noqa: E402

SMALLER = quantise.PRECISIONS[1:]
KINDS = {'int8': {'MatMulInteger', 'DynamicQuantizeLinear'}, 'int8-static': {'MatMulInteger', 'QuantizeLinear'}, 'fp16': {'Cast'}}


class Small(nn.Module):
    """A convolution and layers whose weights are worth 8 bits."""
    num_classes = 10

    def __init__(self, in_chans=3):
        super().__init__()
        self.in_chans = in_chans
        self.conv = nn.Conv2d(in_chans, 64, 9, stride=8, padding=4)
        self.norm = nn.LayerNorm(64)
        self.mix = nn.Parameter(torch.randn(1, 64, 64) / 8)  # a constant, but no matrix
        self.fc1 = nn.Linear(64, 256)
        self.fc2 = nn.Linear(256, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2)) @ self.mix
        return self.head((x + self.fc2(self.fc1(x).relu())).mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder with five pictures, a hidden one, and a text that calls itself a picture."""
    folder = tmp_path_factory.mktemp('photos')
    (folder / 'more').mkdir()
    random = np.random.default_rng(0)
    for i in range(5):
        coarse = Image.fromarray(random.integers(256, size=(5, 5, 3), dtype=np.uint8))
        coarse.resize((80, 70), Image.Resampling.BICUBIC).save(folder / ('more' if i % 2 else '.') / f'{i}.png')
    Image.new('RGB', (8, 8)).save(folder / '.hidden.png')
    (folder / 'text.png').write_text('no picture')
    return folder


def export(model, path, precision, **options):
    defaults = dict(input_size=(64, 64), opset=17, rounds=0, precision=precision, force_precision=True)
    return vitzoo.export_onnx(model, path, **{**defaults, **options})


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """The file of `Small` in float32."""
    torch.manual_seed(0)
    return Path(export(Small(), tmp_path_factory.mktemp('full') / 'full.onnx', 'fp32', force_precision=False).path)


def shrink(full, path, precision, photos, *, rounds=0, force=False, weights='random'):
    """A copy of the file in a smaller precision, what is said of it, and the remarks."""
    proto, notes = onnx.load(full), []
    next(prop for prop in proto.metadata_props if prop.key == 'weights').value = json.dumps(weights)
    onnx.save(proto, path)
    return path, quantise.quantise(path, precision, drift.find(photos), (1, 3), rounds, force, notes), notes


def timed(monkeypatch, ratio):
    """As if the file in smaller precision were so many times as fast."""
    monkeypatch.setattr(quantise, '_time', lambda session, other, x, precision, rounds: ((ratio,) * 3, {'fp32': ratio, precision: 1.}))


@pytest.mark.parametrize('precision', SMALLER)
def test_the_report_says_what_a_recomputation_says(model, full, photos, tmp_path, precision):
    report = export(model, tmp_path / 'x.onnx', precision, calibration=photos)
    smaller, plain = OnnxModel(report.path), OnnxModel(full)
    pictures = [read_image(path) for path in images_below(photos) if path.name != 'text.png']
    judged = pictures[1::2] if precision == 'int8-static' else pictures
    errors, same = [], []
    for picture in judged:
        want, got = (m.run(picture)['logits'].astype(np.float64) for m in (plain, smaller))
        errors.append(np.sqrt(((got - want) ** 2).sum() / (want ** 2).sum()))
        same.append(want.argmax() == got.argmax())
    found = report.quantisation.drift
    assert found.error == pytest.approx(np.median(errors), rel=1e-3, abs=1e-6) and 0 < found.error < drift.MAX_RANDOM_ERROR
    assert (found.top1, found.images, found.source) == (np.mean(same), len(judged), photos.name)
    assert found.boxes is None and found.labels is None
    assert any('text.png was skipped' in w for w in report.warnings) and any('random' in w for w in report.warnings)

    # the file says so too, and holds what its precision promises
    assert smaller.metadata['precision'] == report.metadata['precision'] == report.precision == precision
    assert smaller.metadata['drift'] == json.loads(json.dumps(found.to_dict())) and plain.metadata['precision'] == 'fp32'
    proto = onnx.load(report.path)
    assert {prop.key for prop in proto.metadata_props} == {*plain.metadata, 'drift'}
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds >= KINDS[precision] and 'ConvInteger' not in kinds and report.nodes == len(proto.graph.node)
    assert {node.domain for node in proto.graph.node} <= {'', 'ai.onnx'}
    if precision != 'fp16':
        scales = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8}
        assert any(list(t.dims) == [64, 256] for t in scales.values())
        assert [256] in [list(t.dims) for t in proto.graph.initializer if 'scale' in t.name]  # by output channel
    image, *_ = smaller.session.get_inputs()
    assert image.type == 'tensor(float)' and smaller.session.get_outputs()[0].type == 'tensor(float)'
    assert report.quantisation.file_size == {'fp32': full.stat().st_size, precision: report.file_size}
    assert report.file_size == (tmp_path / 'x.onnx').stat().st_size < 0.9 * full.stat().st_size


def test_report_in_words(model, photos, tmp_path, monkeypatch):
    timed(monkeypatch, 2.5)
    report = export(model, tmp_path / 'x.onnx', 'int8', calibration=photos, rounds=1, force_precision=False)
    data = json.loads(json.dumps(report.to_dict()))['quantisation']
    assert data['speed_up'] == [2.5] * 3 and data['forced'] is None and data['drift']['images'] == 5
    assert data['cpu'] == quantise.instructions() and set(data['latency_ms']) == {'fp32', 'int8'}
    out = StringIO()
    Console(file=out, width=200).print(report)
    for words in ('2.50x [2.50, 2.50]', 'relative error', '5 images: ' + photos.name, data['cpu']):
        assert words in out.getvalue()


def test_the_same_bytes_twice(full, photos, tmp_path):
    for precision in SMALLER:
        one, other = (shrink(full, tmp_path / name, precision, photos)[0].read_bytes() for name in ('1.onnx', '2.onnx'))
        assert one == other != full.read_bytes()


def test_which_parts_have_their_ranges_from_images():
    make = onnx.helper.make_node
    nodes = [make('Conv', ['image', 'dense'], ['a'], name='stem'),
             make('Conv', ['a', 'depthwise'], ['b'], name='residual stream', group=32),  # used by the norm and the sum
             make('Transpose', ['b'], ['c'], name='its move', perm=[0, 2, 3, 1]),
             make('LayerNormalization', ['c', 'scale'], ['d'], name='norm'),
             make('MatMul', ['d', 'matrix'], ['e'], name='fc1'),
             make('Transpose', ['e'], ['f'], name='move in', perm=[0, 3, 1, 2]),
             make('Conv', ['f', 'depthwise'], ['g'], name='between layers', group=32),
             make('Transpose', ['g'], ['h'], name='move out', perm=[0, 2, 3, 1]),
             make('MatMul', ['h', 'matrix'], ['i'], name='fc2'),
             make('Add', ['c', 'i'], ['j'], name='sum'),
             make('MatMul', ['j', 'j'], ['k'], name='attention')]
    weights = [onnx.numpy_helper.from_array(np.ones(shape, 'f'), name) for name, shape in
               (('dense', (32, 3, 4, 4)), ('depthwise', (32, 1, 3, 3)), ('matrix', (32, 32)), ('scale', (32,)))]
    graph = onnx.helper.make_graph(nodes, 'graph', [], [], weights)
    assert quantise._by_images(graph) == ['stem', 'between layers', 'move out', 'fc2']


def test_a_slow_file_is_refused_unless_forced(full, photos, tmp_path, monkeypatch):
    timed(monkeypatch, 0.8)
    for precision in ('int8', 'int8-static'):
        with pytest.raises(ExportError, match=r'not faster than float32: 0.80x .*force_precision=True.*relative error'):
            shrink(full, tmp_path / 'x.onnx', precision, photos, rounds=1)
        assert [path.name for path in tmp_path.iterdir()] == ['x.onnx']
    _, found, notes = shrink(full, tmp_path / 'x.onnx', 'int8', photos, rounds=1, force=True)
    assert '0.80x' in found.forced and any('kept by force' in note for note in notes)
    _, found, notes = shrink(full, tmp_path / 'x.onnx', 'fp16', photos, rounds=1)  # is for other runtimes
    assert found.forced is None and any('not faster here' in note for note in notes)


@pytest.mark.parametrize('weights, limit', [('loaded', drift.MAX_ERROR), ('random', drift.MAX_RANDOM_ERROR)])
def test_a_file_that_drifts_is_refused_unless_forced(full, photos, tmp_path, monkeypatch, weights, limit):
    monkeypatch.setattr(drift, '_relative', lambda got, want: limit + .01)
    with pytest.raises(ExportError, match=f'drifts too far.* {limit} is allowed'):
        shrink(full, tmp_path / 'x.onnx', 'int8', photos, weights=weights)
    assert 'drifts' in shrink(full, tmp_path / 'x.onnx', 'int8', photos, force=True, weights=weights)[1].forced
    monkeypatch.setattr(drift, '_relative', lambda got, want: limit - .01)
    shrink(full, tmp_path / 'x.onnx', 'int8', photos, weights=weights)


def test_nothing_is_left_of_a_file_that_is_refused(model, photos, tmp_path, monkeypatch):
    timed(monkeypatch, 0.8)
    (tmp_path / 'x.onnx').write_bytes(b'older')
    with pytest.raises(ExportError, match='not faster'):
        export(model, tmp_path / 'x.onnx', 'int8', calibration=photos, rounds=1, force_precision=False)
    assert [path.name for path in tmp_path.iterdir()] == ['x.onnx'] and (tmp_path / 'x.onnx').read_bytes() == b'older'


def test_weights_beyond_float16_are_noticed(model, photos, tmp_path):
    model.fc2.weight.data *= 1e8
    with pytest.raises(ExportError, match='drifts too far'):
        export(model, tmp_path / 'x.onnx', 'fp16', calibration=photos, force_precision=False)
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_never_let_pass():
    x = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(ExportError, match='not finite'):
        drift.measure(lambda x: {'logits': x}, lambda x: {'logits': x + np.nan}, [x], 'here', 'classification')


@pytest.mark.parametrize('options, message', [
    (dict(precision='int4'), "precision='int4': expected 'fp32', 'int8'"),
    (dict(precision='int8', rounds=0), 'at least one round'),
    (dict(precision='fp32', force_precision=True), 'are for precision'),
    (dict(precision='fp32', calibration='.'), 'are for precision'),
    (dict(precision='int8', calibration='nowhere'), 'expected a folder with images'),
    (dict(precision='int8', calibration='.'), 'expected a folder with images'),
    (dict(precision='int8', calibration=[]), 'calibration'),
    (dict(precision='int8', calibration=[3]), 'image files'),
])
def test_bad_arguments_cost_no_work(model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vitzoo.export.verify, 'make_cases', None)
    with pytest.raises(ValueError, match=message):
        vitzoo.export_onnx(model, tmp_path / 'x.onnx', (64, 64), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_that_come_with_the_installation(model, tmp_path):
    pytest.importorskip('sklearn')
    pytest.importorskip('matplotlib')
    found = export(model, tmp_path / 'x.onnx', 'int8').quantisation.drift
    assert found.source.startswith('built in: ') and 'scikit-learn' in found.source and found.images == 24


def test_channels_that_photographs_do_not_have(photos, tmp_path):
    sizes = dict(input_size=(5, 64, 64))
    found = export(Small(5), tmp_path / 'x.onnx', 'int8-static', **sizes).quantisation.drift
    assert 'random images' in found.source
    with pytest.raises(ValueError, match='1 or 3 channels'):
        export(Small(5), tmp_path / 'y.onnx', 'int8', calibration=photos, **sizes)


def boxes(*rows):
    """(x, y, label, score) of boxes 10x10."""
    rows = np.array(rows, np.float32).reshape(-1, 4)
    return dict(boxes=np.concatenate([rows[:, :2], rows[:, :2] + 10], 1), labels=rows[:, 2].astype(int), scores=rows[:, 3],
                masks=np.stack([np.arange(40) < x for x in rows[:, 0]]).reshape(-1, 5, 8) if len(rows) else np.zeros((0, 5, 8), bool))


def agreement(want, got):
    return drift.measure(lambda x: want, lambda x: got, [np.zeros((1, 3, 8, 8))], 'here', 'detection')


def test_agreement_of_objects():
    want = boxes((10, 0, 1, .9), (30, 0, 2, .5), (30, 20, 2, .1))
    found = agreement(want, want)
    assert (found.boxes, found.box_iou, found.mask_iou, found.objects) == (1, 1, 1, 4)  # the unsure one is not asked for
    found = agreement(want, boxes((11, 0, 1, .9), (30, 0, 1, .5)))  # moved by a tenth; of another class
    assert found.boxes == .5 and found.box_iou == pytest.approx(90 / 110) and found.mask_iou == pytest.approx(10 / 11)
    assert agreement(want, boxes((10, 0, 1, .9), (30, 0, 2, .2))).boxes == 1  # a score that falls below the bound
    assert agreement(want, boxes()).boxes == 0 and agreement(boxes(), want).boxes == 0
    assert agreement(boxes(), boxes()).boxes is None and str(agreement(boxes(), boxes())) == 'nothing was found in either'
    twice = boxes((10, 0, 1, .9), (10, 0, 1, .9))
    assert agreement(twice, boxes((10, 0, 1, .9))).boxes == pytest.approx(2 / 3)  # each counts once
    assert agreement(boxes((0, 0, 1, .1)), boxes((0, 0, 1, .1))).objects == 2  # all, where none is sure
    assert drift.Drift(1, '', boxes=.9).beyond(trained=True) and not drift.Drift(1, '', boxes=.9).beyond(trained=False)


@pytest.mark.parametrize('seg, threshold, share', [
    (np.array([[[1., 3.]], [[2., 2.]]])[None], None, .5), (np.array([[[1., 3.]]])[None], .9, .5), (np.array([[[0, 4]]]), None, .5)])
def test_agreement_of_pixels(seg, threshold, share):
    other = np.zeros_like(seg)  # class 0 everywhere
    found = drift.measure(lambda x: {'seg': seg}, lambda x: {'seg': other}, [seg], 'here', 'segmentation', threshold)
    assert found.labels == share


@pytest.mark.slow
@pytest.mark.parametrize('precision', SMALLER)
@pytest.mark.parametrize('name', zoo.MICRO)
def test_every_family(name, precision, photos, tmp_path):
    report = vitzoo.export_onnx(zoo.build(name, num_classes=10), tmp_path / 'x.onnx', (64, 96), precision=precision, force_precision=True,
                                calibration=photos, rounds=0)
    assert report.quantisation.drift.error < 0.1
    found = OnnxModel(report.path).session.run(None, {'image': torch.cat([photo(i, (3, 64, 96)) for i in range(3)]).numpy()})
    assert found[0].shape == (3, 10) and np.isfinite(found[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize('precision', SMALLER)
def test_feature_maps(precision, photos, tmp_path):
    report = export(vitzoo.DenseBackbone('svit_micro'), tmp_path / 'x.onnx', precision, calibration=photos)
    assert report.outputs == ('feat0', 'feat1', 'feat2', 'feat3') and 0 < report.quantisation.drift.error < 0.1


@pytest.mark.slow
def test_command(photos, tmp_path, capsys):
    out = tmp_path / 'x.onnx'
    command = ['export', 'svit_micro', '--num-classes', '10', '--size', '64x64', '--opset', '17', '--out', str(out)]
    assert main([*command, '--precision', 'int8', '--calibration', str(photos), '--force-precision', '--json']) == 0
    data = json.loads(capsys.readouterr().out)
    assert data['precision'] == 'int8' and data['quantisation']['drift']['source'] == photos.name
    # in this form pointwise layers are products, which have a fast kernel
    graph = onnx.load(out).graph
    weights = {t.name: list(t.dims) for t in graph.initializer}
    convs = [weights[node.input[1]] for node in graph.node if node.op_type == 'Conv']
    assert convs and not any(dims[2:] == [1, 1] for dims in convs)
    assert main(['predict', str(photos / '0.png'), '--onnx', str(out), '--out', str(tmp_path / 'found')]) == 0
    capsys.readouterr()
    for more, message in ((['--force-precision'], 'go with --precision'), (['--calibration', str(photos)], 'go with --precision'),
                          (['--precision', 'int8', '--calibration', str(tmp_path / 'nowhere')], 'expected a folder with images')):
        assert main([*command, *more]) == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, '--precision', 'int4'])
