"""Which nodes of a foreign graph may be computed ahead: none whose result could be huge."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ctx_export.patterns.match import constant

MOST_ELEMENTS = 1 << 16  # of a folded constant
_SIZED_BY_NUMBERS = ("ConstantOfShape", "Expand", "Tile", "Range")
_GROWING = ("Pad", "Resize", "OneHot", "EyeLike", "CenterCropPad", "Upsample", "Col2Im")


def may_fold(node: ir.Node) -> bool | None:
    """What onnxscript's `should_fold` asks: False where the result may be far larger than what it
    is made from, which a hostile file uses; None leaves it to the limits by size."""
    if node.op_type in _SIZED_BY_NUMBERS:
        return None if _result_elements(node) <= MOST_ELEMENTS else False
    return False if node.op_type in _GROWING else None


def _result_elements(node: ir.Node) -> float:
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
