"""Graph clean-up that the exporter leaves undone; the result is verified with the file."""


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
