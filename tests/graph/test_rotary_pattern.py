"""The rotary pattern on hand-written graphs: what matches, and the reason where it does not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from ctx_export.patterns.match import Miss
from ctx_export.patterns.rotary import RotaryMatch, match_rotary

# rotate_half(x)·sin + x·cos on the last 8 dims of x, as PyTorch's exporter writes it.
WHOLE = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,2,S,8] x, float[B,1,S,8] angle, float[B,2,S,8] other) => (float[B,2,S,8] y)
<int64[1] zero = {0}, int64[1] half = {4}, int64[1] far = {9223372036854775807},
 int64[1] axis = {3}, int64[1] step = {1}>
{
  c = Cos(angle)
  s = Sin(angle)
  straight = Mul(x, c)
  first = Slice(x, zero, half, axis, step)
  second = Slice(x, half, far, axis, step)
  negated = Neg(second)
  halves = Concat<axis = -1>(negated, first)
  turned = Mul(halves, s)
  y = Add(straight, turned)
}
"""

PARTIAL = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,2,S,12] x, float[B,1,S,8] angle) => (float[B,2,S,12] y)
<int64[1] zero = {0}, int64[1] half = {4}, int64[1] eight = {8},
 int64[1] far = {9223372036854775807}, int64[1] axis = {3}, int64[1] step = {1}>
{
  head = Slice(x, zero, eight, axis, step)
  tail = Slice(x, eight, far, axis, step)
  c = Cos(angle)
  s = Sin(angle)
  straight = Mul(head, c)
  first = Slice(head, zero, half, axis, step)
  second = Slice(head, half, far, axis, step)
  negated = Neg(second)
  halves = Concat<axis = -1>(negated, first)
  turned = Mul(halves, s)
  rotated = Add(straight, turned)
  y = Concat<axis = -1>(rotated, tail)
}
"""


def match(text: str) -> RotaryMatch | Miss:
    model = ir.from_proto(onnx.parser.parse_model(text))
    optimizer.optimize_ir(model)  # infers the shapes that the pattern reads
    return match_rotary(model.graph.outputs[0])


@pytest.mark.parametrize(
    ("text", "rotary_dim"),
    [
        (WHOLE, 8),
        (
            WHOLE.replace("Mul(x, c)", "Mul(c, x)").replace(
                "Add(straight, turned)", "Add(turned, straight)"
            ),
            8,
        ),
        (PARTIAL, 8),
    ],
    ids=["whole", "swapped", "partial"],
)
def test_half_split_rotation_is_recognised(text, rotary_dim):
    found = match(text)
    assert isinstance(found, RotaryMatch), str(found)
    assert found.source.name == "x"
    assert (found.rotary_dim, found.interleaved) == (rotary_dim, False)


@pytest.mark.parametrize(
    ("text", "old", "new", "reason"),
    [
        (WHOLE, "Add(straight, turned)", "Sub(straight, turned)", "found Sub"),
        (WHOLE, "c = Cos(angle)", "c = Exp(angle)", "Cos and Sin"),
        (WHOLE, "s = Sin(angle)", "s = Cos(angle)", "Cos and Sin"),
        (WHOLE, "Neg(second)", "Abs(second)", "Concat(Neg(Slice), Slice)"),
        (WHOLE, "Slice(x, zero, half", "Slice(other, zero, half", "beside the cosine"),
        (WHOLE, "int64[1] half = {4}", "int64[1] half = {3}", "(0, 3, 3)"),
        (PARTIAL, "Slice(x, eight, far", "Slice(x, half, eight", "(0, 8, 4)"),
    ],
)
def test_a_rotation_that_is_none_names_its_reason(text, old, new, reason):
    assert old in text
    found = match(text.replace(old, new))
    assert isinstance(found, Miss)
    assert reason in str(found)
