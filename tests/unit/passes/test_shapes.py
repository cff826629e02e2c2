"""Dimensions that stay open. Oracle: rows counted by hand."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ctx_export.passes.shapes import settle_shapes

_TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
rows (int64[batch, tokens] input_ids) => (int64[n] kept)
<int64[1] axis = {0}, int64[1] start = {0}, int64[1] end = {-1}, int64[1] flat = {-1}>
{
    places = NonZero (input_ids)
    row = Reshape (places, flat)
    kept = Slice (row, start, end, axis)
}
"""


def test_two_open_dimensions_are_not_one():
    """One row less is another dimension: given the same name, the Slice would be dropped."""
    model = ir.from_proto(onnx.parser.parse_model(_TEXT))
    for node in model.graph:
        for value in node.outputs:
            value.shape = ir.Shape([None] * (2 if node.op_type == "NonZero" else 1))
    settle_shapes(model)
    reshape, cut = (node.outputs[0].shape for node in list(model.graph)[1:])
    assert reshape is not None and cut is not None and reshape != cut
    assert "None" not in (str(reshape[0]), str(cut[0]))
