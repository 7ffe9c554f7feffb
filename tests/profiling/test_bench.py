"""Benches: what is measured, what is refused, files that are found again."""
import csv

import numpy as np
import pytest
import timm
import torch
from torch import nn

import vitzoo
from vitzoo.layers.plain import is_bare
from vitzoo.profiling import bench as module
from vitzoo.profiling.bench import Case, bench, draw, profile_case, steps, write_csv
from vitzoo.profiling.exports import Exports
from vitzoo.profiling.modules import eager_breakdown, split_network, time_modules
from vitzoo.profiling.published import _table, published
from vitzoo_runtime.files import is_ours

QUICK = dict(rounds=1, min_seconds=0)


@pytest.mark.slow
def test_models_in_pytorch(tmp_path):
    cases = [Case('test_vit', (32, 32)), Case('test_vit', (32, 32), precision='bf16'), Case('test_vit', (32, 32), reduce='tome:r=1')]
    told = []
    plain, half, reduced = found = bench(cases, batches=(1, 2), progress=told.append, **QUICK)
    assert len(told) == steps(cases, (1, 2), 1)
    for result in found:
        assert set(result.ms) == set(result.share) == {1, 2} and result.error is None and result.params
        median, low, high = result.ms[1]
        assert 0 < low <= median <= high and result.throughput(1) == pytest.approx(1e3 / median)
        assert result.peak_megabytes is None or result.peak_megabytes >= 0
    model = timm.create_model('test_vit', img_size=32)
    assert plain.macs == half.macs == vitzoo.profile(model, 32).macs > reduced.macs
    assert half.megabytes < 0.6 * plain.megabytes

    write_csv(found, tmp_path / 'x.csv')
    assert is_ours(tmp_path / 'x.csv')
    rows = list(csv.DictReader((tmp_path / 'x.csv').read_text().splitlines()[1:]))
    assert [(row['reduce'], row['precision'], row['batch']) for row in rows[-3:]] == [('', 'bf16', '2'), ('tome:r=1', 'fp32', '1'),
                                                                                      ('tome:r=1', 'fp32', '2')]
    pytest.importorskip('matplotlib')
    assert is_ours(draw(found, tmp_path / 'x.png'))


def test_share_is_that_of_the_matrix_product(monkeypatch):
    """With times that are given, the share is what they make of the multiply-adds."""
    from vitzoo.profiling.latency import Timings

    def timed(calls, **kwargs):
        return Timings(cpu={name: [0.01, 0.02, 0.04] if 'product' in name else [0.1, 0.1, 0.4] for name in calls})
    monkeypatch.setattr(module, 'take_turns', timed)
    result, = bench([Case('test_vit', (32, 32))], batches=(2,), **QUICK)
    assert result.ms[2] == pytest.approx((50, 50, 200))
    assert result.share[2] == pytest.approx(result.macs / 768 ** 3 * 0.2)  # median of 0.2, 0.4, 0.2 within the rounds


def test_a_file_in_two_runtimes(tiny_onnx):
    pytest.importorskip('openvino')
    path = str(tiny_onnx())
    ort, openvino, int8 = bench([Case(path, runtime='onnxruntime'), Case(path, runtime='openvino'),
                                 Case(path, runtime='onnxruntime', precision='int8')], batches=(1, 3), **QUICK)
    assert not any(result.error for result in (ort, openvino, int8))
    assert ort.macs == 9 and ort.case.size == (24, 24) and ort.params is None and ort.file_megabytes > 0
    assert openvino.difference < 1e-5 and ort.difference is None


def test_openvino_gives_what_onnx_runtime_gives(tiny_onnx):
    pytest.importorskip('openvino')
    from vitzoo.export import ExportError
    from vitzoo.export.runtimes import compare_runtimes, open_file
    path = tiny_onnx()
    session, other = open_file(path), open_file(path, 'openvino')
    for batch in (1, 3):
        feed = {'image': np.random.default_rng(0).standard_normal((batch, 3, 24, 24)).astype(np.float32)}
        (got,), (want,) = other.run(['logits'], feed), session.run(['logits'], feed)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert [(p.name, list(p.shape)[1:]) for p in other.get_inputs()] == [('image', [3, 24, 24])]
    with pytest.raises(ValueError, match="'tensorrt': expected 'onnxruntime' or 'openvino'"):
        open_file(path, 'tensorrt')
    (path.parent / 'broken.onnx').write_bytes(b'nothing')
    with pytest.raises(ExportError, match='OpenVINO cannot read'):
        open_file(path.parent / 'broken.onnx', 'openvino')
    assert compare_runtimes(path, 'openvino', (3, 24, 24)) < 1e-5


def test_a_runtime_that_differs_is_an_error(tiny_onnx, monkeypatch):
    pytest.importorskip('openvino')
    from vitzoo.export.runtimes import OpenVino
    run = OpenVino.run
    monkeypatch.setattr(OpenVino, 'run', lambda *args: [1.001 * value for value in run(*args)])
    result, = bench([Case(str(tiny_onnx()), runtime='openvino')], batches=(1,), **QUICK)
    assert 'OpenVINO differs from ONNX Runtime by 1.0e-03' in result.error and not result.ms


@pytest.mark.slow
def test_exports_are_kept_and_found_again(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    cases = [Case('svit_micro', (64, 64), 'onnxruntime', precision) for precision in ('fp32', 'int8')]
    plain, int8 = bench(cases, batches=(1,), cache=tmp_path, **QUICK)
    assert not plain.error and int8.file_megabytes < plain.file_megabytes
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and all(vitzoo.__version__ in name and '64x64' in name for name in names)
    monkeypatch.setattr('vitzoo.export.export_onnx', None)
    assert not any(result.error for result in bench(cases, batches=(1,), cache=tmp_path, **QUICK))


def test_what_cannot_be_exported_is_told_once(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    from vitzoo.export import ExportError
    calls = []

    def export(*args, **kwargs):
        calls.append(args)
        raise ExportError('a reason')
    monkeypatch.setattr('vitzoo.export.export_onnx', export)
    for _ in range(2):
        file, = bench([Case('test_vit', (32, 32), 'onnxruntime')], batches=(1,), cache=tmp_path, **QUICK)
        assert file.error == 'ExportError: a reason' and not file.ms
    assert len(calls) == 1
    with pytest.raises(ExportError, match='a reason'):
        Exports(tmp_path).get('test_vit', (32, 32))


@pytest.mark.parametrize('case, message', [
    (Case('svit_smal'), "unknown model 'svit_smal'; did you mean svit_small"),
    (Case('svit_small.nonsense'), 'no such tag'),
    (Case('biformer_nchw_micro', (8, 8)), '8'),
    (Case('test_vit', runtime='tensorrt'), "'tensorrt': expected eager"),
    (Case('test_vit', precision='fp8'), "'fp8': expected fp32"),
    (Case('test_vit', precision='int8'), 'int8 and fp16 are for files'),
    (Case('test_vit', reduce='tome:x=1'), "no option 'x'"),
    (Case('svit_micro', reduce='tome'), 'VisionTransformer or Eva'),
    (Case('not/there.onnx', runtime='onnxruntime'), 'no such file'),
    (Case('not/there.onnx'), 'onnxruntime or openvino'),
])
def test_bad_cases_are_refused_before_work(case, message, monkeypatch):
    monkeypatch.setattr(module, 'take_turns', None)
    with pytest.raises(ValueError, match=message):
        bench([Case('test_vit'), case], **QUICK)


def test_files_for_other_sizes_are_refused(tiny_onnx):
    path = str(tiny_onnx())
    with pytest.raises(ValueError, match='24x24 alone, not 32x32'):
        bench([Case(path, (32, 32), 'onnxruntime')], **QUICK)
    with pytest.raises(ValueError, match='cannot be reduced'):
        bench([Case(path, None, 'onnxruntime', reduce='tome')], **QUICK)


def test_breakdown_of_a_model():
    model, x = timm.create_model('test_vit', img_size=32).eval(), torch.randn(1, 3, 32, 32)
    found = eager_breakdown(model, x, depth=1, rounds=1)
    assert found.macs == vitzoo.profile(model, 32).macs == sum(kind.macs for kind in found.kinds)
    whole, *parts = found.modules
    assert whole.name == 'VisionTransformer' and whole.share == 1 and whole.macs == found.macs
    assert {'patch_embed', 'blocks', 'head'} <= {part.name for part in parts} and all('.' not in part.name for part in parts)
    assert sum(part.macs for part in parts) == found.macs and sum(part.ms for part in parts) <= whole.ms * 1.01
    assert sum(kind.share for kind in found.kinds) == pytest.approx(1)
    assert {'addmm', 'mkldnn_convolution'} & {part.name for part in found.operators}


def test_breakdown_of_a_file(tiny_onnx):
    found = profile_case(Case(str(tiny_onnx()), runtime='onnxruntime'), rounds=1)
    file, = found.breakdowns
    assert file.macs == found.macs == 9 and not file.modules
    assert {part.name for part in file.operators} >= {'GlobalAveragePool'} and {kind.name for kind in file.kinds} >= {'matrix product'}


@pytest.mark.slow
def test_breakdowns_agree_with_the_count():
    pytest.importorskip('onnxruntime')
    found = profile_case(Case('svit_micro', (64, 64)), rounds=1)
    eager, file = found.breakdowns
    assert eager.macs == found.macs and file.macs == pytest.approx(found.macs, rel=0.01)


def test_watched_layers_stay_short_cuts():
    """A model must not take another way because its time is taken."""
    layer = nn.Linear(2, 2)
    seen = []
    time_modules({'layer': layer}, lambda: (layer(torch.zeros(1, 2)), seen.append(is_bare(layer))), rounds=1)
    assert seen == [True, True] and not layer._forward_hooks
    layer.register_forward_hook(lambda *args: None)
    assert not is_bare(layer)


def test_parts_of_a_network():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.neck, self.after = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 8, 1), nn.Conv2d(8, 64, 3)

        def forward(self, x):
            return self.after(self.neck(self.backbone(x)))
    network = Network()
    found = split_network(network, lambda: network(torch.randn(1, 3, 64, 64)), rounds=3)
    assert list(found) == ['backbone', 'neck', 'head', 'whole'] and all(0 < low <= median <= high for median, low, high in found.values())
    assert found['whole'][2] >= found['backbone'][1] + found['neck'][1]
    with pytest.raises(ValueError, match='no backbone'):
        split_network(nn.Linear(1, 1), None, 1)


def test_published_accuracies_name_registered_models_and_their_source():
    assert len(_table()) > 40
    for name, known in _table().items():
        assert timm.is_model(name) and 60 < known.top1 < 90 and known.source.startswith('https://') and known.size >= 224
    assert published('svit_small.in1k').top1 == 83.6 and published('svit_micro') is None
