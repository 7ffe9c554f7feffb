"""A tiny classifier, feature model or segmentor as a file of `vitzoo export` would be, made without PyTorch."""
import json

import numpy as np
import pytest

METADATA = dict(model='tiny', task='classification', input_size=[3, 24, 24], mean=[.5, .4, .3], std=[.2, .25, .3], interpolation='bicubic',
                crop_pct=.875, num_classes=3, class_names=['reddish', 'greenish', 'bluish'], versions={}, license=None, source=None)


@pytest.fixture
def tiny_onnx(tmp_path):
    """tiny_onnx(scale=10, **metadata) -> path. The logits are 10 x the means of the three normalised channels, those of pixels the input
    itself, as are features. A value that is a string with a leading '=' is written as it stands behind that."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from onnx import TensorProto, helper, numpy_helper

    def make(scale=10., **changes):
        metadata = {key: value for key, value in {**METADATA, **changes}.items() if value is not ...}
        channels, height, width = METADATA['input_size']
        if metadata.get('task') == 'features':
            nodes = [helper.make_node('Identity', ['image'], ['feat0']), helper.make_node('AveragePool', ['image'], ['feat1'],
                                                                                            kernel_shape=[2, 2], strides=[2, 2])]
            outputs = [helper.make_tensor_value_info('feat0', TensorProto.FLOAT, ['batch', channels, height, width]),
                       helper.make_tensor_value_info('feat1', TensorProto.FLOAT, ['batch', channels, height // 2, width // 2])]
            weights = []
        elif metadata.get('task') == 'segmentation':
            nodes = [helper.make_node('Identity', ['image'], ['seg'])]
            outputs = [helper.make_tensor_value_info('seg', TensorProto.FLOAT, ['batch', channels, height, width])]
            weights = []
        else:
            nodes = [helper.make_node('GlobalAveragePool', ['image'], ['pooled']), helper.make_node('Flatten', ['pooled'], ['flat']),
                     helper.make_node('MatMul', ['flat', 'weight'], ['logits'])]
            outputs = [helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['batch', 3])]
            weights = [numpy_helper.from_array(np.float32(scale) * np.eye(3, dtype=np.float32), 'weight')]
        image = helper.make_tensor_value_info('image', TensorProto.FLOAT, ['batch', channels, height, width])
        model = helper.make_model(helper.make_graph(nodes, 'tiny', [image], outputs, weights), opset_imports=[helper.make_opsetid('', 17)])
        model.ir_version = 8
        helper.set_model_props(model, {key: value[1:] if isinstance(value, str) and value.startswith('=') else json.dumps(value)
                                       for key, value in metadata.items()})
        path = tmp_path / 'tiny.onnx'
        onnx.save(model, path)
        return path
    return make
