"""com.microsoft's RotaryEmbedding as the standard operator on [B,H,S,D]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ctx_export.frontends.contrib_node import ContribNode, width
from ctx_export.frontends.insertion import Insertion
from ctx_export.patterns.match import constant, dimension

INPUTS = ("input", "position_ids", "cos_cache", "sin_cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """What a standard RotaryEmbedding needs beside x: positions [B,S] and caches [rows, F]."""

    positions: ir.Value
    cos: ir.Value
    sin: ir.Value
    columns: int  # F, rotated pairs
    interleaved: int

    def apply(self, x: ir.Value, at: Insertion) -> ir.Value:
        """x [B,H,S,D] rotated."""
        partial = 2 * self.columns < (dimension(x, 3) or 0)
        return at.op(
            "RotaryEmbedding",
            [x, self.cos, self.sin, self.positions],
            x.shape,
            interleaved=self.interleaved,
            rotary_embedding_dim=2 * self.columns if partial else 0,
        )


def lower_rotary_embedding(node: ir.Node, at: Insertion) -> ir.Value:
    """The rotated tensor in the layout of the node's input, [B,S,H·D] or [B,H,S,D]."""
    contrib = ContribNode(node, INPUTS)
    if contrib.integer("is_packed_batching"):
        contrib.refuse("is_packed_batching", 1, "sequences in one row; export without packing")
    scale = contrib.number("scale", 1.0)
    if scale != 1.0:
        contrib.refuse("scale", scale, "kernels disagree on it; export the model with scale 1")
    x = contrib.required("input")
    rotation = Rotation(
        positions=_positions(contrib, at.graph),
        cos=contrib.required("cos_cache"),
        sin=contrib.required("sin_cache"),
        columns=cache_columns(contrib),
        interleaved=contrib.integer("interleaved"),
    )
    if x.shape is not None and len(x.shape) == 4:
        return rotation.apply(x, at)
    heads, head_dim = _heads(contrib, x, rotation.columns)
    return at.join_heads(rotation.apply(at.split_heads(x, heads, head_dim), at))


def own_positions(graph: ir.Graph) -> ir.Value:
    """The graph input `position_ids` [B,S], added where the graph has none."""
    for value in graph.inputs:
        if value.name == "position_ids":
            return value
    ids = next((value for value in graph.inputs if value.name == "input_ids"), None)
    shape = ids.shape if ids is not None and ids.shape is not None else ["batch", "tokens"]
    positions = ir.Value(
        name="position_ids", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64)
    )
    graph.inputs.append(positions)
    return positions


def cache_columns(contrib: ContribNode) -> int:
    """Pairs that a node rotates: the columns of its cos_cache."""
    cos = contrib.required("cos_cache")
    counts = {_columns(table) for table in _alternatives(cos)}
    columns = counts.pop() if len(counts) == 1 else None
    if columns is None:
        contrib.refuse(
            "cos_cache",
            cos.name,
            f"[rows, pairs] with static pairs is needed and its shape is {cos.shape}; export "
            "the caches as initializers",
        )
    return columns


def _columns(table: ir.Value) -> int | None:
    return dimension(table, 1) if table.shape is not None and len(table.shape) == 2 else None


def _alternatives(value: ir.Value) -> list[ir.Value]:
    """The values that `value` is chosen from by an If, as a table for long texts is."""
    node = value.producer()
    if node is None or node.op_type != "If":
        return [value]
    index = node.outputs.index(value)
    branches = (node.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    return [branch.outputs[index] for branch in branches]


def _heads(contrib: ContribNode, x: ir.Value, columns: int) -> tuple[int, int]:
    """Heads and their dims in x [B,S,H·D], by the operator's conventions."""
    hidden, heads = width(x), contrib.integer("num_heads")
    if hidden is None:
        contrib.refuse("input", x.name, "its last dimension is unknown; run shape inference")
    if contrib.integer("rotary_embedding_dim") and heads < 1:
        contrib.refuse("num_heads", heads, "rotary_embedding_dim needs it; export it as well")
    head_dim = hidden // heads if contrib.integer("rotary_embedding_dim") else 2 * columns
    if hidden % head_dim:
        contrib.refuse("cos_cache", f"{columns} columns", f"heads do not fill {hidden} dims")
    return hidden // head_dim, head_dim


def _positions(contrib: ContribNode, graph: ir.Graph) -> ir.Value:
    """position_ids [B,S]; an offset [1] of the first token counts up to the tokens' own."""
    positions = contrib.required("position_ids")
    if positions.shape is None or len(positions.shape) == 2:
        return positions
    offset = constant(positions)
    if offset is not None and np.any(offset):
        contrib.refuse("position_ids", offset.tolist(), "positions that do not begin at 0")
    return own_positions(graph)
