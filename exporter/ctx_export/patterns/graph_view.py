"""What every value of a decoder's graph depends on: hidden states, positions or nothing."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_SHAPE_OF = ("Shape", "Size")
_FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.INT8,
    ir.DataType.UINT8,
)


class GraphView:
    """A graph with the dependence of its values and the order of its nodes.

    `hidden` values are computed from tokens or cached keys and values. `positional` ones are not,
    and follow the graph's inputs otherwise: position_ids, attention_mask, or the shape of
    anything. All others are constant.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.order: dict[ir.Node, int] = {}
        self.hidden: set[ir.Value] = {v for v in graph.inputs if carries_states(v)}
        self.positional: set[ir.Value] = {v for v in graph.inputs if v not in self.hidden}
        for index, node in enumerate(graph):
            self.order[node] = index
            read = [value for value in inputs_of(node) if value is not None]
            if node.domain == "" and node.op_type in _SHAPE_OF:
                if any(value in self.hidden or value in self.positional for value in read):
                    self.positional.update(node.outputs)
            elif any(value in self.hidden for value in read):
                self.hidden.update(node.outputs)
            elif any(value in self.positional for value in read):
                self.positional.update(node.outputs)


def carries_states(value: ir.Value) -> bool:
    """Whether a graph input holds tokens or what was computed from them: a mask does not, which
    spans two lengths."""
    if value.name == "input_ids":
        return True
    shape = value.shape
    if value.dtype not in _FLOATS or shape is None or len(shape) < 3:
        return False
    return any(isinstance(size, int) for size in shape[-2:])


def inputs_of(node: ir.Node) -> Iterator[ir.Value | None]:
    """All values that a node reads, those that its subgraphs take from outside among them."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield from _captured(attribute.as_graph())


def _captured(graph: ir.Graph) -> Iterator[ir.Value]:
    inside: set[ir.Value] = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in inputs_of(node):
            if value is not None and value not in inside:
                yield value
        inside.update(node.outputs)
    for value in graph.outputs:
        if value not in inside:
            yield value
