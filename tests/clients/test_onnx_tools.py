"""Other tools on our files: onnxslim, OpenVINO, and ONNX Runtime's quantiser behind onnxslim (that on our files is in tests/export)."""
import numpy as np
import pytest
import timm
import torch
import zoo

ort = pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')

import vitzoo  # noqa: E402
from vitzoo.export import verify  # noqa: E402

SIZE = 64
every_micro = pytest.mark.parametrize('name', zoo.MICRO)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """name -> path of the file of a micro model, each made once, by the quicker exporter."""
    folder, paths = tmp_path_factory.mktemp('tools'), {}

    def export(name):
        if name not in paths:
            torch.manual_seed(0)
            model = zoo.build(name, num_classes=10)
            paths[name] = vitzoo.export_onnx(model, folder / f'{name}.onnx', SIZE, opset=17, rounds=0).path
        return paths[name]
    return export


def photos(*seeds):
    return np.concatenate([verify.photo(seed, (3, SIZE, SIZE)).numpy() for seed in seeds])


def run(file, images):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(file, options, providers=['CPUExecutionProvider']).run(None, {'image': images})[0]


def check_close(name, found, expected):
    """All but one image that may be a choice resolved the other way, in models that choose."""
    error = np.abs(found - expected).max(1) / np.abs(expected).max()
    with torch.device('meta'):
        selects = getattr(timm.create_model(name), 'selects', False)
    assert (error > 1e-5).sum() <= int(selects) and error.max() <= verify.CHOICE_TOLERANCE


@every_micro
def test_onnxslim(name, exported, tmp_path):
    onnxslim = pytest.importorskip('onnxslim')
    slim, images = str(tmp_path / 'slim.onnx'), photos(1, 2, 3)
    onnxslim.slim(str(exported(name)), slim)
    assert len(onnx.load(slim).graph.node) <= len(onnx.load(exported(name)).graph.node)
    assert [m.key for m in onnx.load(slim).metadata_props] == [m.key for m in onnx.load(exported(name)).metadata_props]
    check_close(name, run(slim, images), run(exported(name), images))


@every_micro
def test_onnxslim_then_quantised(name, exported, tmp_path):
    onnxslim = pytest.importorskip('onnxslim')
    from onnxruntime.quantization import quantize_dynamic
    slim, quantised, images = str(tmp_path / 'slim.onnx'), str(tmp_path / 'quantised.onnx'), photos(1, 2, 3)
    onnxslim.slim(str(exported(name)), slim)
    quantize_dynamic(slim, quantised)
    assert np.corrcoef(run(quantised, images).ravel(), run(exported(name), images).ravel())[0, 1] > 0.98


@every_micro
def test_openvino(name, exported):
    openvino = pytest.importorskip('openvino')
    core = openvino.Core()
    model = core.compile_model(core.read_model(exported(name)), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1})
    images = photos(1, 2, 3)
    check_close(name, model({'image': images})['logits'], run(exported(name), images))
