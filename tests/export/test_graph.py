"""What the graphs of exported files are made of, and what other tools make of them."""
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import zoo
from torch import nn

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
ort = pytest.importorskip('onnxruntime')

import vitzoo  # noqa: E402
from vitzoo.export import verify  # noqa: E402
from vitzoo.export.simplify import FOLD_LIMIT, fold_constants, forget_stale_shapes  # noqa: E402

ODD_SIZE = (200, 264)


def model_with_large_weights(name, **kwargs):
    """Weights that show what attention sees."""
    model = zoo.build(name, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5 * module.in_features ** -0.5)
    return model


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """(name, opset, size) -> path of the file of a micro model, each made once."""
    folder, paths = tmp_path_factory.mktemp('graph'), {}

    def export(name, opset, size):
        key = name, opset, size
        if key not in paths:
            torch.manual_seed(0)
            path = folder / f'{name}-{opset}-{size[0]}.onnx'
            paths[key] = vitzoo.export_onnx(model_with_large_weights(name), path, size, opset=opset, rounds=0).path
        return paths[key]
    return export


# the usual exporter takes many seconds a model; this one the least
FILES = [pytest.param(name, opset, size, id=f'{name}-{opset}-{size[0]}',
                      marks=() if opset == 17 and size == (224, 224) and name in ('stvit_deit_micro', 'svit_micro') else pytest.mark.slow)
         for name in zoo.MICRO for opset in (17, 20) for size in ((224, 224), ODD_SIZE)]
SQUARE = [case for case in FILES if case.values[2] == (224, 224)]


def run(path, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(path, options, providers=['CPUExecutionProvider']).run(None, {'image': images})[0]


def photos(seeds, size) -> np.ndarray:
    return np.concatenate([verify.photo(seed, (3, *size)).numpy() for seed in seeds])


@pytest.mark.parametrize('name, opset, size', FILES)
def test_no_node_computes_a_constant(name, opset, size, exported):
    graph = onnx.load(exported(name, opset, size)).graph
    constants = {tensor.name for tensor in graph.initializer}
    assert not [f'{node.op_type} {node.name}' for node in graph.node if {*node.input} - {''} <= constants]
    assert not constants & {value.name for value in graph.value_info}


@pytest.mark.parametrize('name, opset, size', FILES)
def test_operators_that_runtimes_are_slow_at_or_lack(name, opset, size, exported):
    graph = onnx.load(exported(name, opset, size)).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    assert not {'If', 'Loop', 'Scan', 'Einsum'} & {node.op_type for node in graph.node}
    for node in graph.node:
        reduction = next((a.s for a in node.attribute if a.name == 'reduction'), b'none')
        assert not node.op_type.startswith('Scatter') or reduction == b'none', node.name
        if node.op_type == 'GatherElements':  # with an index for each element of wide rows, where whole rows are meant
            assert node.input[1] not in constants and made_by.get(node.input[1]) not in ('Expand', 'Tile'), node.name


@pytest.mark.parametrize('name, opset', [pytest.param(*case.values[:2], marks=case.marks, id=case.id) for case in SQUARE])
def test_other_images_in_batches_of_one_and_three(name, opset, exported):
    """Of images that the export has not seen."""
    torch.manual_seed(0)
    model, path = model_with_large_weights(name), exported(name, opset, (224, 224))
    for seeds in (20,), (21, 22, 23):
        images = photos(seeds, (224, 224))
        with torch.no_grad():
            expected = model(torch.from_numpy(images)).numpy()
        error = np.abs(run(path, images) - expected).max(1) / np.abs(expected).max()
        assert (error > 1e-5).sum() <= int(getattr(model, 'selects', False)) and error.max() <= verify.CHOICE_TOLERANCE


@pytest.mark.parametrize('name, opset', [
    pytest.param(*case.values[:2], marks=() if case.values[:2] == ('stvit_deit_micro', 17) else pytest.mark.slow, id=case.id)
    for case in SQUARE])
def test_same_bytes_twice(name, opset, exported, tmp_path):
    torch.manual_seed(0)
    again = vitzoo.export_onnx(model_with_large_weights(name), tmp_path / 'again.onnx', 224, opset=opset, rounds=0).path
    with open(again, 'rb') as new, open(exported(name, opset, (224, 224)), 'rb') as old:
        assert new.read() == old.read()


@pytest.mark.slow
def test_same_bytes_in_another_process(tmp_path):
    """Where sets have another order."""
    program = """
import sys, timm, torch, vitzoo
torch.manual_seed(0)
vitzoo.export_onnx(timm.create_model('stvit_deit_micro'), sys.argv[1], 64, rounds=0)"""
    for seed in '1', '2':
        subprocess.run([sys.executable, '-c', program, tmp_path / f'{seed}.onnx'], env={**os.environ, 'PYTHONHASHSEED': seed}, check=True)
    assert (tmp_path / '1.onnx').read_bytes() == (tmp_path / '2.onnx').read_bytes()


@pytest.mark.parametrize('name, opset, size', SQUARE)
def test_dynamic_quantisation(name, opset, size, exported, tmp_path):
    from onnxruntime.quantization import quantize_dynamic
    path, quantised = exported(name, opset, size), str(tmp_path / 'quantised.onnx')
    quantize_dynamic(path, quantised)
    images = photos(range(2), size)
    assert np.corrcoef(run(path, images).ravel(), run(quantised, images).ravel())[0, 1] > 0.995


@pytest.mark.slow
@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('form', ['QDQ', 'QOperator'])
@pytest.mark.parametrize('name, opset, size', SQUARE)
def test_static_quantisation(name, opset, size, form, per_channel, exported, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Photos(CalibrationDataReader):
        def __init__(self):
            self.seeds = iter(range(10, 14))

        def get_next(self):
            seed = next(self.seeds, None)
            return None if seed is None else {'image': photos([seed], size)}

    path, quantised = exported(name, opset, size), str(tmp_path / 'quantised.onnx')
    quantize_static(path, quantised, Photos(), quant_format=QuantFormat[form], per_channel=per_channel)
    images = photos(range(2), size)
    # eight bits may resolve many choices the other way
    assert np.corrcoef(run(path, images).ravel(), run(quantised, images).ravel())[0, 1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name != 'stvit_micro', zoo.MICRO))
def test_exported_program_can_be_decomposed(name):
    model, x = zoo.build(name), torch.randn(2, 3, 112, 144)
    program = torch.export.export(model, (x,)).run_decompositions()
    with torch.no_grad():
        expected, found = model(x), program.module()(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize('name', zoo.MICRO)
def test_plain_model_goes_through_pytorch_s_own_exporter(name, tmp_path):
    """With gradients, as users call it: attention may take another path with them than without."""
    model, x = zoo.build(name), torch.randn(2, 3, 112, 144)
    torch.onnx.export(model, (x,), tmp_path / 'plain.onnx', dynamo=True, input_names=['image'], verbose=False)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(run(tmp_path / 'plain.onnx', x.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize('opset', zoo.first_quick([17, 20]))
def test_resampled_positions_are_stored(opset, exported):
    """The file of another size has a table for that size, and nothing that resamples."""
    graph = onnx.load(exported('stvit_deit_micro', opset, ODD_SIZE)).graph
    assert 'Resize' not in {node.op_type for node in graph.node}
    assert [1, 13 * 17, 128] in [list(tensor.dims) for tensor in graph.initializer]


@pytest.mark.slow
def test_timm_s_positions_are_stored(tmp_path):
    model = timm.create_model('vit_tiny_patch16_224', dynamic_img_size=True, depth=1)
    report = vitzoo.export_onnx(model, tmp_path / 'model.onnx', (96, 128), rounds=0)
    assert 'Resize' not in {node.op_type for node in onnx.load(report.path).graph.node}


def parse(body: str, initializers: str):
    return onnx.parser.parse_model(f'''
        <ir_version: 9, opset_import: ["" : 20]>
        g (float[n, 2] x) => (float[n, 2] y) <{initializers}> {{ {body} }}''')


def test_folded_constants():
    proto = parse('''
        c = Constant <value = float[2] {3, 4}> ()
        d = Add (a, c)
        e = Identity (d)
        f = Mul (x, e)
        y = Add (f, d)''', 'float[2] a = {1, 2}')
    fold_constants(proto)
    assert [node.op_type for node in proto.graph.node] == ['Mul', 'Add']
    assert {t.name: onnx.numpy_helper.to_array(t).tolist() for t in proto.graph.initializer} == {'e': [4, 6], 'd': [4, 6]}
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize('body', [
    'b = ConstantOfShape <value = float[1] {1}> (shape)  s = ReduceSum <keepdims = 0> (b)  y = Add (x, s)',
    'b = RandomNormal <shape = [2]> ()  y = Add (x, b)',
    'b = DequantizeLinear (q, scale)  y = Add (x, b)',
], ids=['large', 'random', 'quantised'])
def test_what_stays(body):
    proto = parse(body, f'int64[1] shape = {{{FOLD_LIMIT}}}, int8[2] q = {{1, 2}}, float scale = {{0.5}}')
    operators = [node.op_type for node in proto.graph.node]
    fold_constants(proto)
    assert [node.op_type for node in proto.graph.node] == operators


def test_shapes_of_initializers_are_forgotten():
    proto = parse('h = Add (x, a)  y = Relu (h)', 'float[2] a = {1, 2}')
    for name in 'a', 'h', 'gone':
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, [2]))
    forget_stale_shapes(proto.graph)
    assert [value.name for value in proto.graph.value_info] == ['h']


# nodes at opset 20 and 224x224, which a change of a model's forward should not raise: each transpose is a pass over a map
NODES = {
    'biformer_micro': 268, 'biformer_nchw_micro': 288, 'cas_vit_micro': 186, 'dualtoken_vit_micro': 456, 'lookupvit_micro': 337,
    'rmt_micro': 322, 'stvit_deit_micro': 217, 'stvit_micro': 409, 'svit_micro': 259, 'vz_davit_fl_micro': 325, 'vz_davit_micro': 313,
}


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name != 'stvit_deit_micro', zoo.MICRO))
def test_number_of_nodes(name, exported):
    assert len(onnx.load(exported(name, 20, (224, 224))).graph.node) <= NODES[name]
