"""Which nodes of a foreign graph may be computed ahead: none whose result could be huge."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.patterns.result_size import SIZED_BY_NUMBERS, result_elements

MOST_ELEMENTS = 1 << 16  # of a folded constant
_GROWING = ("Pad", "Resize", "OneHot", "EyeLike", "CenterCropPad", "Upsample", "Col2Im")


def may_fold(node: ir.Node) -> bool | None:
    """What onnxscript's `should_fold` asks: False where the result may be far larger than what it
    is made from, which a hostile file uses; None leaves it to the limits by size."""
    if node.op_type in SIZED_BY_NUMBERS:
        return None if result_elements(node) <= MOST_ELEMENTS else False
    return False if node.op_type in _GROWING else None
