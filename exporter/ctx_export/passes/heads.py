"""Grouped heads that a graph repeats before anything else are given a tensor of their own.

A fused projection may keep keys as [batch, token, KV head, 1, dim] and expand that 1 over the
query heads of a group. What a cache keeps is in between: [batch, token, KV head, dim].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ctx_export.patterns.match import dimension, producer

_RANK = 5


def separate_grouped_heads(graph: ir.Graph) -> bool:
    """Put Squeeze and Unsqueeze in front of every Expand over a group of heads, in place; returns
    whether there was one. What the graph computes does not change."""
    expands = [node for node in graph if node.domain == "" and node.op_type == "Expand"]
    found = [(node, axis) for node in expands if (axis := _group_axis(node.inputs[0])) is not None]
    for node, axis in found:
        _separate(graph, node, axis)
    return bool(found)


def _group_axis(value: ir.Value | None) -> int | None:
    """The axis of 1 behind the heads of [B,S,H,1,D] or [B,H,1,S,D]; None where `value` is neither
    or has a tensor of four dimensions before it."""
    if value is None or value.shape is None or len(value.shape) != _RANK:
        return None
    if producer(value, "Unsqueeze") is not None or dimension(value, 4) is None:
        return None
    return next((axis for axis in (2, 3) if _is_group(value, axis)), None)


def _is_group(value: ir.Value, axis: int) -> bool:
    return dimension(value, axis) == 1 and (dimension(value, axis - 1) or 0) >= 1


def _separate(graph: ir.Graph, expand: ir.Node, axis: int) -> None:
    value = expand.inputs[0]
    assert value is not None and value.shape is not None and value.dtype is not None
    tape = ir.tape.Tape()
    axes = tape.op("Constant", [], {"value": ir.tensor(np.array([axis], np.int64))})
    heads = tape.op("Squeeze", [value, axes])
    grouped = tape.op("Unsqueeze", [heads, axes])
    sizes = list(value.shape)
    heads.dtype = grouped.dtype = value.dtype
    heads.shape, grouped.shape = ir.Shape(sizes[:axis] + sizes[axis + 1 :]), ir.Shape(sizes)
    for part, name in ((axes, "group_axis"), (heads, "heads"), (grouped, "grouped")):
        part.name = f"{expand.outputs[0].name}.{name}"
    graph.insert_before(expand, tape.nodes)
    expand.replace_input_with(0, grouped)
