import errno
import json
import os
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zoo
from rich.console import Console
from torch import nn

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
ort = pytest.importorskip('onnxruntime')

import vitzoo  # noqa: E402
from vitzoo.export import ExportError, exporter, verify  # noqa: E402
from vitzoo.export.simplify import settle_shapes  # noqa: E402


class Tiny(nn.Module):
    """The least that is a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def folder(tmp_path):
    """A folder that holds an older file; whatever happens in a test, nothing but files called *.onnx may be left in it."""
    (tmp_path / 'model.onnx').write_bytes(b'older')
    yield tmp_path
    assert all(f.suffix == '.onnx' and not f.name.startswith('.') for f in tmp_path.iterdir())


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model('svit_micro', num_classes=7)
    path = tmp_path_factory.mktemp('export') / 'classifier.onnx'
    report = vitzoo.export_onnx(model, path, (64, 96), class_names=list('abcdefg'), source='here', rounds=1)
    return model, path, report


@pytest.fixture(scope='module')
def features(tmp_path_factory):
    torch.manual_seed(0)
    model = vitzoo.DenseBackbone('svit_micro')
    path = tmp_path_factory.mktemp('export') / 'features.onnx'
    return model, path, vitzoo.export_onnx(model, path, (57, 83), rounds=0)


def metadata(path) -> dict:
    return {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}


def operators(path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def run(path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {'image': images.numpy()}), strict=True))


def test_a_classifier_runs_at_any_batch(classifier):
    model, path, _ = classifier
    images = torch.randn(5, 3, 64, 96)
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    found = run(path, images)
    assert list(found) == ['logits']
    np.testing.assert_allclose(found['logits'], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_features_at_an_odd_size(features):
    model, path, _ = features
    images = torch.randn(2, 3, 57, 83)
    with torch.no_grad():
        expected = model.eval()(images)
    found = run(path, images)
    assert list(found) == ['feat0', 'feat1', 'feat2', 'feat3']
    for got, want in zip(found.values(), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5 * float(want.abs().max()))


def test_report(classifier):
    _, path, report = classifier
    assert report.max_error <= 1e-5
    assert [(c.batch, c.height, c.width, list(c.errors)) for c in report.checks] == [(1, 64, 96, ['logits']), (3, 64, 96, ['logits'])]
    assert (report.opset, report.exporter, report.outputs, report.warnings) == (20, 'dynamo', ('logits',), [])
    assert report.file_size == path.stat().st_size and report.nodes == len(onnx.load(path).graph.node)
    assert set(report.latency_ms) == {'pytorch', 'onnxruntime'} and min(report.latency_ms.values()) > 0
    assert json.loads(json.dumps(report.to_dict()))['max_error'] == report.max_error
    out = StringIO()
    Console(file=out, width=120).print(report)
    assert 'opset 20' in out.getvalue() and 'logits' in out.getvalue()


def test_metadata(classifier, features):
    found = metadata(classifier[1])
    versions = found.pop('versions')
    assert found == dict(
        model='svit_micro', task='classification', input_size=[3, 64, 96], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
        interpolation='bicubic', crop_pct=classifier[0].pretrained_cfg['crop_pct'], num_classes=7, class_names=list('abcdefg'),
        weights='random', precision='fp32', source='here', license=None)
    assert versions == dict(vitzoo=vitzoo.__version__, torch=torch.__version__, timm=timm.__version__, onnx=onnx.__version__)
    found = metadata(features[1])
    assert (found['task'], found['num_classes'], found['class_names'], found['input_size']) == ('features', 0, None, [3, 57, 83])


def test_height_and_width_are_static_and_no_shape_is_computed(classifier, features):
    for (_, path, _), size in ((classifier, [64, 96]), (features, [57, 83])):
        assert 'Shape' not in operators(path)
        dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == ['batch', 3, *size]


def test_static_batch(tmp_path):
    report = vitzoo.export_onnx(Tiny(), tmp_path / 'static.onnx', (64, 96), dynamic_batch=False, rounds=0)
    assert [str(c) for c in report.checks] == [f'batch 1, {c.height}x{c.width}, random image {i}' for i, c in enumerate(report.checks)]
    assert [c.batch for c in report.checks] == [1] * 4
    assert 'Shape' not in operators(report.path)
    assert run(report.path, torch.randn(1, 3, 64, 96))['logits'].shape == (1, 5)


def test_the_file_is_free_of_local_paths(classifier):
    assert b'site-packages' not in classifier[1].read_bytes()
    assert b'svit.py' not in classifier[1].read_bytes()


@pytest.mark.parametrize('name, options, size', [
    ('test_vit', {}, 160), pytest.param('resnet10t', {}, 64, marks=pytest.mark.slow),
    pytest.param('repghostnet_050', {}, 64, marks=pytest.mark.slow),
    pytest.param('fastvit_t8', {}, 64, marks=pytest.mark.slow),
    pytest.param('deit_tiny_patch16_224', {}, 224, marks=pytest.mark.slow),
    pytest.param('swin_tiny_patch4_window7_224', dict(features_only=True), 224, marks=pytest.mark.slow),
])
def test_any_timm_model(name, options, size, tmp_path):
    report = vitzoo.export_onnx(timm.create_model(name, **options), tmp_path / 'x.onnx', size, rounds=0)
    assert report.model == name and report.max_error <= 1e-5 and len(report.checks) == 2


QUICK = 'svit_micro', 'lookupvit_micro', 'rmt_micro'  # of the next test


@pytest.mark.parametrize('opset, size', [(17, (224, 224)), pytest.param(20, (72, 136), marks=pytest.mark.slow)], ids=['17', '20'])
@pytest.mark.parametrize('features_only', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['classifier', 'features'])
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in QUICK, zoo.MICRO))
def test_every_model(name, features_only, opset, size, tmp_path):
    """By the older exporter, and by the usual one at a size that is padded in every stage; weights show what attention sees."""
    model = zoo.build(name, features_only=features_only)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5 * module.in_features ** -0.5)
    report = vitzoo.export_onnx(model, tmp_path / 'model.onnx', size, opset=opset, dynamic_batch=not features_only, rounds=0)
    assert report.model == name and len(report.outputs) == (len(model.feature_info.channels()) if features_only else 1)
    assert [check.batch for check in report.checks] == ([1] * 4 if features_only else [1, 3])
    assert not {'Loop', 'If'} & operators(report.path)
    assert 'Shape' not in operators(report.path) or opset == 17 or not features_only  # a static file of the usual exporter has none


@pytest.mark.parametrize('dense', [False, True], ids=['classifier', 'dense'])
@pytest.mark.parametrize('name', zoo.MICRO)
def test_model_of_one_size_is_refused_with_its_reason(name, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, '_export', fail)
    reason = getattr(zoo.build(name), 'exportable_dynamic_size', True)
    if reason is True:
        pytest.skip('takes any size in one file')
    model = vitzoo.DenseBackbone(name) if dense else zoo.build(name)
    with pytest.raises(ValueError, match=f'one file per size: {reason}'):
        vitzoo.export_onnx(model, tmp_path / 'model.onnx', (72, 136), dynamic_size=True)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in zoo.MICRO if getattr(zoo.build(name), 'exportable_dynamic_size', True) is True])
def test_model_of_any_size_is_checked_at_three_more(name, tmp_path):
    """By the older exporter: the usual one takes many minutes where windows are laid out for any size."""
    report = vitzoo.export_onnx(zoo.build(name), tmp_path / 'model.onnx', (64, 96), dynamic_size=True, opset=17, rounds=0)
    sizes = {(check.height, check.width) for check in report.checks}
    assert len(sizes) == 4 and any(h % 2 and w % 2 for h, w in sizes) and report.max_error <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', zoo.MICRO)
def test_pyramids_of_odd_sizes_by_the_older_exporter(name, tmp_path):
    """Its graph divides sizes that PyTorch divides too, and must round alike."""
    report = vitzoo.export_onnx(vitzoo.DenseBackbone(name), tmp_path / 'model.onnx', (115, 139), opset=17, rounds=0)
    assert report.max_error <= 1e-5


@pytest.mark.slow
def test_dynamic_size(tmp_path):
    model = timm.create_model('convnext_atto', features_only=True, depths=(1, 1, 1, 1))
    report = vitzoo.export_onnx(model, tmp_path / 'x.onnx', (64, 96), dynamic_size=True, rounds=0)
    sizes = {(c.height, c.width) for c in report.checks}
    assert len(sizes) == 4 and (64, 96) in sizes and any(h % 2 and w % 2 for h, w in sizes)
    images = torch.randn(2, 3, 101, 75)
    with torch.no_grad():
        expected = model.eval()(images)
    for got, want in zip(run(tmp_path / 'x.onnx', images).values(), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize('opset', [17, 18, 23])
def test_the_opset_is_the_one_asked_for(opset, folder):
    report = vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16, opset=opset, rounds=0)
    assert [o.version for o in onnx.load(report.path).opset_import if o.domain == ''] == [opset]
    assert report.exporter == ('torchscript' if opset == 17 else 'dynamo')
    assert run(report.path, torch.randn(4, 3, 16, 16))['logits'].shape == (4, 5)


def test_another_opset_than_asked_for_is_refused(folder, monkeypatch):
    export = exporter._export

    def wrong_opset(*args):
        proto = export(*args)
        proto.opset_import[0].version = 18
        return proto

    monkeypatch.setattr(exporter, '_export', wrong_opset)
    with pytest.raises(ExportError, match='wrote opset 18 where 20'):
        vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16)
    assert (folder / 'model.onnx').read_bytes() == b'older'


def test_a_graph_that_disagrees_is_not_kept(folder, monkeypatch):
    export = exporter._export

    def other_weights(model, *args):
        model.head.bias.data[2] += 1e-3
        return export(model, *args)

    monkeypatch.setattr(exporter, '_export', other_weights)
    with pytest.raises(ExportError, match='logits at batch 1, 16x16, random image 0: the file differs'):
        vitzoo.export_onnx(Tiny(), folder / 'new.onnx', 16)
    with pytest.raises(ExportError):
        vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16)
    assert not (folder / 'new.onnx').exists() and (folder / 'model.onnx').read_bytes() == b'older'


def test_what_the_exporter_cannot_do_is_named(folder):
    class DataDependent(Tiny):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(ExportError, match='DataDependent could not be exported at opset 20'):
        vitzoo.export_onnx(DataDependent(), folder / 'model.onnx', 16)
    assert (folder / 'model.onnx').read_bytes() == b'older'


@pytest.mark.parametrize('opset', [17, 20])
def test_failure_of_the_exporter_is_one_line(opset, folder, capfd):
    """The exporters give advice on many lines, and the older one prints its graph."""
    class Antialiased(Tiny):
        def forward(self, x):
            size = (24, 24) if opset == 17 else (int(x.mean().item()) + 24, 24)  # unknown there; a size that depends on values
            return super().forward(nn.functional.interpolate(x, size, mode='bicubic', antialias=True))

    with pytest.raises(ExportError) as error:
        vitzoo.export_onnx(Antialiased(), folder / 'model.onnx', 16, opset=opset)
    assert '\n' not in str(error.value) and '\x1b' not in str(error.value)
    assert capfd.readouterr().out == ''


def test_a_size_frozen_into_the_graph_is_found(folder):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return [self.conv(x) * (1. if x.shape[2] > 70 else 2.)]

    with pytest.raises(ExportError, match='feat0 at batch 1, 96x128'):
        vitzoo.export_onnx(Frozen(), folder / 'model.onnx', 64, dynamic_size=True)
    assert (folder / 'model.onnx').read_bytes() == b'older'


def fail(*args, **kwargs):
    raise AssertionError('work has started')


@pytest.mark.parametrize('where', ['write_bytes', 'replace'])
def test_full_disk_leaves_what_was_there(where, folder, monkeypatch):
    """Half a file is written when there is no space left, or the file cannot get its name."""
    def write_half(path, data):
        with open(path, 'wb') as file:
            file.write(data[:len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_name(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
    monkeypatch.setattr(*((Path, 'write_bytes', write_half) if where == 'write_bytes' else (os, 'replace', no_name)))
    for name in 'new.onnx', 'model.onnx':
        with pytest.raises(OSError, match='No space left'):
            vitzoo.export_onnx(Tiny(), folder / name, 16, opset=17, rounds=0)
    assert not (folder / 'new.onnx').exists() and (folder / 'model.onnx').read_bytes() == b'older'


@pytest.mark.parametrize('path, message', [
    ('missing/model.onnx', 'No such file'), ('.', 'is a folder'), ('model.onnx/model.onnx', 'Not a directory')])
def test_an_unwritable_path_is_refused_before_work(path, message, folder, monkeypatch):
    monkeypatch.setattr(exporter, '_export', fail)
    monkeypatch.setattr(verify, 'make_cases', fail)
    with pytest.raises(ValueError, match=message):
        vitzoo.export_onnx(Tiny(), folder / path, 16)


@pytest.mark.parametrize('options, message', [
    (dict(model='resnet10t'), 'nn.Module'),
    (dict(input_size=(1, 3, 16, 16)), 'input_size'),
    (dict(input_size=-1), 'input_size'),
    (dict(input_size=(4, 16, 16)), r'does not take images of \(C, H, W\) = \(4, 16, 16\)'),
    (dict(input_size=2), 'does not take images'),
    (dict(opset=16), '17 to 23'),
    (dict(opset=24), '17 to 23'),
    (dict(rounds=-1), 'rounds'),
    (dict(weights='good'), "weights='good'"),
    (dict(class_names=['one']), 'expected 5'),
])
def test_bad_arguments_are_refused_before_work(options, message, folder, monkeypatch):
    monkeypatch.setattr(exporter, '_export', fail)
    with pytest.raises(ValueError, match=message):
        vitzoo.export_onnx(**{**dict(model=Tiny(), path=folder / 'model.onnx', input_size=16), **options})
    assert (folder / 'model.onnx').read_bytes() == b'older'


def test_what_cannot_be_exported_is_refused_with_the_reason(folder, monkeypatch):
    monkeypatch.setattr(exporter, '_export', fail)
    model = nn.Sequential(Tiny())
    for reason in (False, 'it sorts its weights'):
        model[0].exportable = reason
        with pytest.raises(ValueError, match=f'Tiny cannot be exported to ONNX.*{reason or ""}'):
            vitzoo.export_onnx(model, folder / 'model.onnx', 16)
    model[0].exportable, model[0].exportable_dynamic_size = True, 'it builds tables'
    with pytest.raises(ValueError, match='one file per size: it builds tables'):
        vitzoo.export_onnx(model, folder / 'model.onnx', 16, dynamic_size=True)
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1)
    with pytest.raises(ValueError, match="doesn't match model"):
        vitzoo.export_onnx(vit, folder / 'model.onnx', 32, dynamic_size=True)
    monkeypatch.setattr(exporter, 'FILE_LIMIT', 100)
    with pytest.raises(ValueError, match='less than 2 GiB'):
        vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16)


def test_outputs_that_mean_nothing_are_refused(folder, monkeypatch):
    monkeypatch.setattr(exporter, '_export', fail)
    broken = Tiny()
    broken.head.bias.data[1] = float('nan')
    with pytest.raises(ValueError, match='not finite'):
        vitzoo.export_onnx(broken, folder / 'model.onnx', 16)

    class Named(Tiny):
        def forward(self, x):
            return {'logits': super().forward(x)}

    with pytest.raises(ValueError, match='must return a tensor'):
        vitzoo.export_onnx(Named(), folder / 'model.onnx', 16)


def test_a_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'vitzoo\[onnx\]'):
        vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16)


def test_the_model_is_left_as_it_was(folder):
    class Folding(Tiny):
        def reparameterize(self):
            self.head.weight.data *= 0.5
            self.head.bias.data *= 0.5
            self.conv.weight.data *= 2  # relu lets a positive factor through
            self.conv.bias.data *= 2
            self.head.bias.data *= 2

    model = nn.Sequential(Folding()).bfloat16().train()
    model[0].conv.eval()
    model(torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)).sum().backward()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    report = vitzoo.export_onnx(model, folder / 'model.onnx', 16, rounds=1)
    assert report.max_error <= 1e-5
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(v.equal(state[k]) and v.dtype == torch.bfloat16 for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad.equal(g) for p, g in zip(model.parameters(), grads, strict=True))
    assert threads == torch.get_num_threads() and torch.get_rng_state().equal(random)


def test_nothing_is_printed(folder, capfd):
    vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16, rounds=0)
    assert capfd.readouterr() == ('', '')
    vitzoo.export_onnx(Tiny(), folder / 'model.onnx', 16, rounds=0, progress=True)
    assert capfd.readouterr().out == ''


def test_channels_other_than_three_and_a_headless_model(folder):
    model = timm.create_model('resnet10t', in_chans=1, num_classes=0)
    report = vitzoo.export_onnx(model, folder / 'model.onnx', 64, rounds=0)
    assert (report.input_size, report.task, report.outputs) == ((1, 64, 64), 'features', ('feat0',))
    assert len(metadata(report.path)['mean']) == 1 and 'averages' in report.warnings[0]


def test_outputs_that_are_all_zero_are_remarked(folder):
    model = Tiny()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert 'zero' in vitzoo.export_onnx(model, folder / 'model.onnx', 16, rounds=0).warnings[0]


@pytest.mark.parametrize('name', zoo.FIRST.values())
def test_weights_are_told_from_how_norms_are_built(name):
    model = timm.create_model(name)
    assert exporter._kind_of_weights(model) == exporter._kind_of_weights(vitzoo.DenseBackbone(name)) == 'random'
    model.train()(torch.randn(2, 3, 224, 224)).sum().backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()
    assert exporter._kind_of_weights(model) == 'loaded'
    assert exporter._kind_of_weights(Tiny()) is None


@pytest.mark.parametrize('weights, num_classes, named', [('loaded', 1000, True), ('random', 1000, False), ('loaded', 5, False)])
def test_published_facts_are_for_published_weights(weights, num_classes, named, folder):
    model = Tiny()
    model.head, model.num_classes = nn.Linear(4, num_classes), num_classes
    model.pretrained_cfg = dict(num_classes=1000, origin_url='there', license='mit', mean=(.5,) * 3, std=(.5,) * 3)
    found = vitzoo.export_onnx(model, folder / 'model.onnx', 16, rounds=0, weights=weights).metadata
    assert found['weights'] == weights and (found['class_names'] is not None) == named
    assert (found['source'], found['license']) == (('there', 'mit') if weights == 'loaded' else (None, None))
    if named:
        assert found['class_names'][0].startswith('tench') and len(found['class_names']) == 1000


class FakeSession:
    """Gives back what PyTorch gave, off by a share of the largest value for some of the images."""

    def __init__(self, cases, off: dict[int, float]):
        self.answers = {len(c.images): (c, off) for c in cases}

    def run(self, names, feed):
        case, off = self.answers[len(feed['image'])]
        out = case.outputs[0].clone()
        for row, seed in enumerate(case.seeds):
            out[row, 0] += off.get(seed, 0) * out.abs().max()
        return [out.numpy()]


@pytest.mark.parametrize('off, selects, accepted', [
    ({}, False, True), ({2: 5e-6}, False, True), ({2: 1e-4}, False, False), ({2: 1e-4}, True, True), ({2: 3e-3}, True, False),
    ({0: 1e-4, 2: 1e-4}, True, False), ({1: float('nan')}, True, False)])
def test_a_model_that_chooses_may_resolve_one_tie_the_other_way(off, selects, accepted):
    torch.manual_seed(0)
    cases = verify.make_cases(Tiny(), (3, 16, 16), (1, 3))
    assert [c.seeds for c in cases] == [(0,), (1, 2, 3)]
    notes = []
    if accepted:
        checks = exporter._check_size(FakeSession(cases, off), cases, ('logits',), selects, notes)
        assert max(e for c in checks for e in c.errors.values()) <= 1e-5
        assert bool(notes) == (max(off.values(), default=0) > 1e-5)
    else:
        with pytest.raises(ExportError):
            exporter._check_size(FakeSession(cases, off), cases, ('logits',), selects, notes)


def test_check_images_are_fixed_and_look_like_normalised_photos():
    image = verify.photo(0, (3, 64, 96))
    assert image.equal(verify.photo(0, (3, 64, 96))) and not image.equal(verify.photo(1, (3, 64, 96)))
    assert image.shape == (1, 3, 64, 96) and 0.3 < image.std() < 1.5 and image.abs().max() <= 2.7


def test_settled_shapes():
    proto = onnx.parser.parse_model('''
        <ir_version: 9, opset_import: ["" : 20]>
        g (float[batch, 2, 3, 4] x) => (float[batch, 6, 4] y, float[a, b] z)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[2] known = {6, 4}, int64[1] unused = {9}> {
            shape = Shape (x)
            batch = Slice (shape, zero, one)
            target = Concat <axis = 0> (batch, known)
            y = Reshape (x, target)
            other = Shape <start = 2> (y)
            open = Concat <axis = 0> (batch, batch)
            left = Gather (x, zero)
            number = Cast <to = 1> (batch)
            z = Expand (number, open)
        }''')
    settle_shapes(proto)
    assert [n.op_type for n in proto.graph.node] == ['Shape', 'Slice', 'Reshape', 'Concat', 'Cast', 'Expand']
    tensors = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in proto.graph.initializer}
    assert tensors == {'zero': [0], 'one': [1], 'y_target': [-1, 6, 4]}
    onnx.checker.check_model(proto, full_check=True)
