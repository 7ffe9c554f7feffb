"""Multiply-adds of an ONNX file, by operator, from the shapes in its graph: the same definition as for a model in PyTorch."""
import math
import os
from collections import Counter
from collections.abc import Mapping

MATMUL, CONV = 'matrix product', 'convolution'
# operators as files and ONNX Runtime's optimiser call them -> what they are
KINDS = {
    **dict.fromkeys(('MatMul', 'Gemm', 'FusedMatMul', 'FusedGemm', 'MatMulInteger', 'MatMulIntegerToFloat', 'DynamicQuantizeMatMul',
                     'QLinearMatMul', 'QGemm', 'MatMulNBits', 'TransposeMatMul', 'GemmFastGelu'), MATMUL),
    **dict.fromkeys(('Conv', 'FusedConv', 'ConvTranspose', 'ConvInteger', 'QLinearConv', 'NhwcFusedConv'), CONV),
}


def graph_macs(path: str | os.PathLike, image: tuple[int, int, int, int] | None = None) -> Counter:
    """Kind (see `KINDS`) -> multiply-adds of one run, for the graph as it is in the file.

    Args:
        image: (B, C, H, W), where the file leaves some of these open; by default a batch of 1.

    Raises:
        ValueError: if a shape stays unknown, as that of height and width in a file for any size, or the file is no ONNX.
    """
    import onnx
    try:
        proto = onnx.load(os.fspath(path))
    except Exception as e:  # its errors have no common base
        raise ValueError(f'{path} cannot be read as ONNX: {e}') from e
    _settle(proto, image)
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes.setdefault(value.name, tuple(d.dim_value if d.HasField('dim_value') else None for d in dims))
    total = Counter()
    for node in graph.node:
        if node.op_type in KINDS:
            total[KINDS[node.op_type]] += _macs(node, shapes)
    return total


def _settle(proto, image: tuple[int, int, int, int] | None) -> None:
    """Write the lengths of the image into the graph, in place, and forget what was noted of shapes that depend on them."""
    initial = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in initial]
    dims = inputs[0].type.tensor_type.shape.dim
    for i, dim in enumerate(dims):
        if not dim.HasField('dim_value'):
            dim.dim_value = image[i] if image else 1 if i == 0 else 0
        if dim.dim_value < 1:
            raise ValueError(f'the file takes images of any size; say which, (B, C, H, W): its own are {[d.dim_param for d in dims]}.')
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField('shape')


def _macs(node, shapes: Mapping[str, tuple]) -> int:
    attributes = {a.name: a for a in node.attribute}
    first, second, out = (shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type.startswith('QLinear'):
        second = shapes.get(node.input[3], ())
    if not first or not second or not out or None in (*first, *second, *out):
        raise ValueError(f'{node.op_type} {node.name!r}: its shapes cannot be told without running the file.')
    if KINDS[node.op_type] == CONV:
        transposed = node.op_type == 'ConvTranspose'
        return math.prod(first if transposed else out) * math.prod(second[1:])
    inner = first[0] if 'transA' in attributes and attributes['transA'].i else first[-1]
    return math.prod(out) * inner
