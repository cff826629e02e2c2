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

# Pairs (2i, 2i+1), on [B,S,H,D] that is transposed afterwards.
NEIGHBOURS = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,S,2,8] x, float[B,S,1,8] angle, float[B,S,2,8] other) => (float[B,2,S,8] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] far = {9223372036854775807},
 int64[1] axis = {3}, int64[1] step = {2}, int64[1] last = {-1}, int64[4] shape = {0, 0, 2, 8}>
{
  c = Cos(angle)
  s = Sin(angle)
  straight = Mul(x, c)
  even = Slice(x, zero, far, axis, step)
  odd = Slice(x, one, far, axis, step)
  negated = Neg(odd)
  left = Unsqueeze(negated, last)
  right = Unsqueeze(even, last)
  pairs = Concat<axis = -1>(left, right)
  rotated = Reshape(pairs, shape)
  turned = Mul(rotated, s)
  sum = Add(straight, turned)
  y = Transpose<perm = [0, 2, 1, 3]>(sum)
}
"""

# Each half by itself, one angle a pair.
JOINED = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,2,S,8] x, float[B,1,S,4] angle, float[B,2,S,4] other) => (float[B,2,S,8] y)
{
  c = Cos(angle)
  s = Sin(angle)
  a, b = Split<axis = -1, num_outputs = 2>(x)
  ac = Mul(a, c)
  bs = Mul(b, s)
  bc = Mul(b, c)
  as = Mul(a, s)
  first = Sub(ac, bs)
  second = Add(bc, as)
  y = Concat<axis = -1>(first, second)
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


def test_pairs_side_by_side_before_a_transpose_are_recognised():
    found = match(NEIGHBOURS)
    assert isinstance(found, RotaryMatch), str(found)
    assert (found.source.name, found.rotary_dim) == ("x", 8)
    assert found.interleaved and found.transposed


def test_halves_that_are_turned_one_by_one_are_recognised():
    found = match(JOINED)
    assert isinstance(found, RotaryMatch), str(found)
    assert (found.source.name, found.rotary_dim, found.interleaved) == ("x", 8, False)


@pytest.mark.parametrize(
    ("text", "old", "new", "reason"),
    [
        (NEIGHBOURS, "perm = [0, 2, 1, 3]", "perm = [0, 2, 3, 1]", "found Transpose"),
        (NEIGHBOURS, "int64[1] one = {1}", "int64[1] one = {2}", "(0, 2, 2, 2)"),
        (NEIGHBOURS, "Slice(x, one", "Slice(other, one", "beside the cosine"),
        (NEIGHBOURS, "Concat<axis = -1>(left, right)", "Concat<axis = -1>(right, left)", "Neg"),
        (JOINED, "Mul(b, s)", "Mul(other, s)", "one cosine and one sine"),
        (JOINED, "Sub(ac, bs)", "Sub(bs, ac)", "one cosine and one sine"),
        (JOINED, "Mul(a, s)", "Mul(b, s)", "one cosine and one sine"),
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
