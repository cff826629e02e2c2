"""How large a node makes its result by numbers alone, which a hostile file may choose at will."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ctx_export.patterns.match import constant

SIZED_BY_NUMBERS = ("ConstantOfShape", "Expand", "Tile", "Range")


def result_elements(node: ir.Node) -> float:
    """Elements of what such a node makes, infinite where that cannot be told."""
    values = [constant(value) for value in node.inputs]
    if any(value is None for value in values):
        return math.inf
    numbers = [np.asarray(value, np.float64) for value in values]
    if node.op_type == "Range":
        start, limit, step = (float(n.reshape(-1)[0]) for n in numbers)
        return abs((limit - start) / step) if step else math.inf
    if node.op_type == "ConstantOfShape":
        return float(np.prod(numbers[0]))
    return max(float(numbers[0].size), 1.0) * float(np.prod(numbers[1]))
