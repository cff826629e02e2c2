"""Batch and tokens read from input_ids, wherever a graph reads them from another tensor's shape.

What another tensor's shape is read for keeps the tensor itself alive: a mask, a rotated query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from ctx_export.patterns.match import constant

_OF_INPUT_IDS = ("batch", "tokens")


def read_sizes_of_tokens(nodes: Iterable[ir.Node], input_ids: ir.Value) -> None:
    """Make the Shapes among `nodes` independent of their tensors, where the sizes that are read
    are numbers, batch or tokens; others, such as the length of a cache, are read as before."""
    for node in list(nodes):
        value = node.inputs[0] if node.op_type == "Shape" and node.domain == "" else None
        if value is None or value is input_ids or value.shape is None:
            continue
        sizes = [str(size) for size in value.shape]
        if sizes == list(_OF_INPUT_IDS):
            node.replace_input_with(0, input_ids)
        elif all(size in _OF_INPUT_IDS or size.isdigit() for size in _read(node, sizes)):
            _compose(node, sizes, input_ids)


def _range(shape: ir.Node, sizes: Sequence[str]) -> list[str]:
    """The sizes that a Shape node gives."""
    start = shape.attributes.get_int("start", 0) or 0
    end = shape.attributes.get_int("end", len(sizes))
    return list(sizes)[start:end]


def _read(shape: ir.Node, sizes: Sequence[str]) -> list[str]:
    """The sizes that are read from a Shape node: all of them, or those that Gathers pick."""
    given, picked = _range(shape, sizes), []
    for use in shape.outputs[0].uses():
        index = constant(use.node.inputs[1]) if use.node.op_type == "Gather" else None
        if index is None or use.idx != 0:
            return given
        picked += [given[int(place)] for place in np.asarray(index).reshape(-1)]
    return picked


def _compose(shape: ir.Node, sizes: Sequence[str], input_ids: ir.Value) -> None:
    """Replace a Shape node by the same vector, made of input_ids' sizes and numbers; sizes that
    nobody reads are 0."""
    graph, tape, parts = shape.graph, ir.tape.Tape(), []
    assert isinstance(graph, ir.Graph)
    for size in _range(shape, sizes):
        if size in _OF_INPUT_IDS:
            axis = _OF_INPUT_IDS.index(size)
            parts.append(tape.op("Shape", [input_ids], {"start": axis, "end": axis + 1}))
        else:
            number = np.array([int(size) if size.isdigit() else 0], np.int64)
            parts.append(tape.op("Constant", [], {"value": ir.tensor(number)}))
    whole = tape.op("Concat", parts, {"axis": 0})
    old = shape.outputs[0]
    for index, value in enumerate(value for node in tape.nodes for value in node.outputs):
        value.name = f"{old.name}.sizes.{index}"
    whole.type, whole.shape = old.type, old.shape
    graph.insert_before(shape, tape.nodes)
    ir.convenience.replace_all_uses_with(old, whole)
    graph.remove(shape, safe=True)
