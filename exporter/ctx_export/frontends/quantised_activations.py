"""Q/DQ pairs on activations: kept in front of products with quantised weights, which compute in
integers, dropped elsewhere, as ctx operators compute in the graph's own precision."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.patterns.match import constant, producer

_PRODUCTS = ("MatMul", "Gemm")


def drop_idle_pairs(graph: ir.Graph) -> int:
    """Let readers of QuantizeLinear → DequantizeLinear read what was quantised, in place; returns
    how many pairs that concerns.

    Rotation, scores and softmax lose their rounding to a few bits; products with weights keep it.
    """
    dropped = 0
    for node in graph.all_nodes():
        if node.op_type != "DequantizeLinear" or node.domain != "":
            continue
        quantised = producer(node.inputs[0], "QuantizeLinear")
        if quantised is None or not _undoes(node, quantised):
            continue
        source = quantised.inputs[0]
        idle = [use for use in node.outputs[0].uses() if not _computes_in_integers(*use)]
        for reader, index in idle:
            reader.replace_input_with(index, source)
        is_output = node.outputs[0].is_graph_output()
        if is_output and source is not None:
            _take_over(source, node.outputs[0])
        dropped += bool(idle) or is_output
    return dropped


def _take_over(source: ir.Value, output: ir.Value) -> None:
    """Make `source` the graph's output in place of `output`, under its name."""
    name, output.name = output.name, f"{output.name}.rounded"
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    source.name = name


def _undoes(dequantise: ir.Node, quantise: ir.Node) -> bool:
    """Whether two nodes have the same scale and zero point."""
    return all(_are_equal(_input(dequantise, index), _input(quantise, index)) for index in (1, 2))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _are_equal(one: ir.Value | None, other: ir.Value | None) -> bool:
    if one is other:
        return True
    left, right = constant(one), constant(other)
    if left is None or right is None or left.shape != right.shape:
        return False
    return bool((left == right).all())


def _computes_in_integers(reader: ir.Node, index: int) -> bool:
    """Whether `reader` multiplies its input with weights that are stored quantised."""
    if reader.domain != "" or reader.op_type not in _PRODUCTS or index > 1:
        return False
    weight = producer(reader.inputs[1 - index], "DequantizeLinear")
    while weight is not None and weight.inputs[0] is not None:
        held = weight.inputs[0]
        if held.is_initializer():
            return True
        weight = producer(held, "Transpose")
    return False
