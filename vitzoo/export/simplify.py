"""Graph clean-up that the exporters leave undone; the result is verified with the file."""
import math

FOLD_LIMIT = 2**20  # bytes of a constant that may be made of smaller ones


def simplify(proto) -> None:
    """Put a graph, in place, into the form that runtimes and their tools read best: constants are initializers, shapes are numbers."""
    fold_constants(proto)
    settle_shapes(proto)
    fold_constants(proto)
    forget_stale_shapes(proto.graph)


def fold_constants(proto) -> None:
    """Compute what depends on no input once and for all, in place.

    Quantisation tools look for initializers where weights belong, and runtimes differ in rare operators. What would swell the file stays:
    a result of more than `FOLD_LIMIT` bytes that is larger than what it is made of. So do random numbers, quantised weights, and nodes
    with a graph inside.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept, folded = [], False
    for node in graph.node:
        results = _compute(node, constants, proto) if _is_constant(node, constants) else None
        if results is None:
            kept.append(node)
        else:
            folded = True
            constants.update((tensor.name, tensor) for tensor in results)
            graph.initializer.extend(results)
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
        _drop_unused(graph)


def _is_constant(node, constants: dict) -> bool:
    return (
        _inputs(node) <= constants.keys()
        and not node.op_type.startswith(('Random', 'Bernoulli', 'Multinomial', 'Quantize', 'Dequantize', 'DynamicQuantize'))
        and not any(attribute.HasField('g') or attribute.graphs for attribute in node.attribute))


def _compute(node, constants: dict, proto) -> list | None:
    """The outputs of a node as initializers, or None if they are too large to be stored."""
    import onnx
    import onnxruntime
    helper = onnx.helper
    tensors = [constants[name] for name in dict.fromkeys(node.input) if name]
    graph = helper.make_graph([node], 'constant', [], [onnx.ValueInfoProto(name=name) for name in node.output if name], tensors)
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
        values = session.run(None, {})
    except Exception:  # its errors have no common base; what cannot be computed here will be said when the whole file is read
        return None
    size = sum(value.nbytes for value in values)
    if size > max(FOLD_LIMIT, sum(_num_bytes(tensor) for tensor in tensors)) and node.op_type != 'Constant':
        return None
    return [onnx.numpy_helper.from_array(value, output.name) for value, output in zip(values, session.get_outputs(), strict=True)]


def _num_bytes(tensor) -> int:
    import onnx
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def settle_shapes(proto) -> None:
    """Write the target of every Reshape in which only one length is open as a constant with -1 there, in place.

    With a dynamic batch the exporter computes such targets from Shape nodes, also where all other lengths are known.
    """
    import numpy as np
    from onnx import numpy_helper, shape_inference
    graph = proto.graph
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    lengths = {
        value.name: [d.dim_value if d.HasField('dim_value') else -1 for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        target = lengths.get(node.output[0], ())
        if node.op_type == 'Reshape' and node.input[1] not in constants and target.count(-1) == 1 and 0 not in target:
            node.input[1] = f'{node.output[0]}_target'
            graph.initializer.append(numpy_helper.from_array(np.array(target), node.input[1]))
    _drop_unused(graph)


def forget_stale_shapes(graph) -> None:
    """Keep the noted shapes of what nodes put out, in place: some tools stumble over those of initializers."""
    outputs = {name for node in graph.node for name in node.output}
    for i in reversed(range(len(graph.value_info))):
        if graph.value_info[i].name not in outputs:
            del graph.value_info[i]


def _drop_unused(graph) -> None:
    """Remove nodes and initializers that no output depends on."""
    needed = {output.name for output in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[i].output):
            del graph.node[i]
        else:
            needed |= _inputs(graph.node[i])
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def _inputs(node) -> set[str]:
    """Names that a node reads, those inside its branches and loops included."""
    inner = (name for attribute in node.attribute for child in attribute.g.node for name in _inputs(child))
    return {*node.input, *inner} - {''}
