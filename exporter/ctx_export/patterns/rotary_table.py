"""The cosines and sines of a rotary embedding, behind what shapes, casts or scales them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ctx_export.patterns.match import constant, producer

_STEPS = ("Unsqueeze", "Cast", "Mul", "Reshape", "Expand", "Tile", "Slice")
_FARTHEST = 12  # steps between a product and the operator that makes its table


def is_table(value: ir.Value | None, op_type: str) -> bool:
    """Whether `value` is a reshaped, cast or scaled result of an `op_type` node, Cos or Sin, or is
    gathered by position from constant rows of those."""
    for _ in range(_FARTHEST):
        node = value.producer() if value is not None else None
        if node is None:
            return False
        if node.op_type == op_type:
            return True
        if node.op_type == "Split":
            return _is_gathered(node, node.outputs.index(value), op_type)
        if node.op_type not in _STEPS:
            return False
        value = node.inputs[0]
    return False


def _is_gathered(split: ir.Node, part: int, op_type: str) -> bool:
    """Whether `part` of two halves of gathered constant rows holds what `op_type` gives: in row 0
    all cosines are 1 and all sines 0."""
    gathered = producer(split.inputs[0], "GatherElements")
    if gathered is None or len(split.outputs) != 2:
        return False
    rows = gathered.inputs[0]
    for _ in range(_FARTHEST):
        node = rows.producer() if rows is not None else None
        if node is None or node.op_type not in _STEPS:
            break
        rows = node.inputs[0]
    table = constant(rows)
    if table is None or table.ndim < 2:
        return False
    half = table.reshape(-1, table.shape[-1])[0].reshape(2, -1)[part]
    return bool(np.all(half == (1.0 if op_type == "Cos" else 0.0)))
