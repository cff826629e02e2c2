"""Takes the key-value cache that a file has out of its computation."""

from __future__ import annotations

import onnx_ir as ir


def drop_cache(graph: ir.Graph) -> None:
    """Remove the outputs `present…`, and Concat(past, new) where past is an input of four dims.

    What remains is what the graph computes for an empty past.
    """
    kept = [value for value in graph.outputs if not (value.name or "").startswith("present")]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    for node in list(graph):
        new = _appended(node)
        if new is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], new)
            graph.remove(node, safe=True)


def _appended(node: ir.Node) -> ir.Value | None:
    """What Concat appends to the past along its tokens."""
    if (node.domain, node.op_type, len(node.inputs)) != ("", "Concat", 2):
        return None
    past, new = node.inputs
    along_tokens = node.attributes.get_int("axis") in (2, -2)
    if past is None or past.shape is None or not past.is_graph_input():
        return None
    is_past = "past" in (past.name or "") and len(past.shape) == 4
    return new if is_past and along_tokens else None
