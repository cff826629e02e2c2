"""Rotations in hand-written graphs: what is recognised, with which table, and why not.

Oracle: the frequencies and the layout that each graph was written with.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from ctx_export.patterns.graph_view import GraphView
from ctx_export.patterns.match import Miss
from ctx_export.patterns.rotary import RotaryMatch, match_rotary

INV_FREQ = [1.0, 0.3, 0.05, 0.000002]

HEAD = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,{x}] given, int64[B,S] position_ids, float[B,2,P,8] past_key_values) => (float[] y)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] half = {{4}}, int64[1] eight = {{8}},
 int64[1] far = {{9223372036854775807}}, int64[1] axis = {{3}}, int64[1] step = {{1}},
 int64[1] two = {{2}}, int64[1] last = {{-1}}, float minus = {{-1.0}}, float twice = {{2.0}},
 float[4] inv_freq = {{1.0, 0.3, 0.05, 0.000002}}, float[8] norm = {{1, 2, 3, 4, 5, 6, 7, 8}},
 int64[4] shape = {{0, 0, 2, 8}}, int64[5] grouped = {{0, 0, 2, 4, 2}}, int64[2] heads = {{1, 2}},
 float[8,8] wheel = {{0, 0, 0, 0, 1, 0, 0, 0,  0, 0, 0, 0, 0, 1, 0, 0,  0, 0, 0, 0, 0, 0, 1, 0,
                      0, 0, 0, 0, 0, 0, 0, 1,  -1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0,
                      0, 0, -1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0}}>
{{
  x = Relu(given)
  place = Cast<to = 1>(position_ids)
  column = Unsqueeze(place, last)
  angle = Mul(column, inv_freq)
"""
# [B,1,S,8] of angles, each half of the dims one after another.
BY_HALVES = """
  twice_angle = Concat<axis = -1>(angle, angle)
  table = Unsqueeze(twice_angle, one)
  c = Cos(table)
  s = Sin(table)
"""
WHOLE = (
    HEAD.format(x="2,S,8")
    + BY_HALVES
    + """
  straight = Mul(x, c)
  first = Slice(x, zero, half, axis, step)
  second = Slice(x, half, far, axis, step)
  negated = Neg(second)
  halves = Concat<axis = -1>(negated, first)
  turned = Mul(halves, s)
  y = Add(straight, turned)
}
"""
)
PARTIAL = (
    HEAD.format(x="2,S,12")
    + BY_HALVES
    + """
  head = Slice(x, zero, eight, axis, step)
  tail = Slice(x, eight, far, axis, step)
  straight = Mul(head, c)
  first = Slice(head, zero, half, axis, step)
  second = Slice(head, half, far, axis, step)
  negated = Mul(second, minus)
  halves = Concat<axis = -1>(negated, first)
  turned = Mul(halves, s)
  rotated = Add(straight, turned)
  y = Concat<axis = -1>(rotated, tail)
}
"""
)
# Pairs (2i, 2i+1) as complex numbers on [B,S,H,D], transposed afterwards.
NEIGHBOURS = (
    HEAD.format(x="S,2,8")
    + """
  row = Unsqueeze(angle, two)
  wide = Unsqueeze(row, last)
  c = Cos(wide)
  s = Sin(wide)
  pairs = Reshape(x, grouped)
  real, imaginary = Split<axis = -1, num_outputs = 2>(pairs)
  rc = Mul(real, c)
  is = Mul(imaginary, s)
  ic = Mul(imaginary, c)
  rs = Mul(real, s)
  new_real = Sub(rc, is)
  new_imaginary = Add(ic, rs)
  joined = Concat<axis = -1>(new_real, new_imaginary)
  rotated = Reshape(joined, shape)
  y = Transpose<perm = [0, 2, 1, 3]>(rotated)
}
"""
)
# Each half by itself, one angle a pair.
JOINED = (
    HEAD.format(x="2,S,8")
    + """
  table = Unsqueeze(angle, one)
  c = Cos(table)
  s = Sin(table)
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
)
# Cached tokens before, each head repeated, and the last two axes swapped: what scores take.
KEY = WHOLE.replace(
    "  y = Add(straight, turned)",
    """  rotated = Add(straight, turned)
  all = Concat<axis = 2>(past_key_values, rotated)
  column_of = Unsqueeze(all, two)
  sizes = Shape(column_of)
  length = Slice(sizes, half_axis, four_axis)
  batch = Slice(sizes, zero, one)
  target = Concat<axis = 0>(batch, heads_two, three, length, eight)
  repeated = Expand(column_of, target)
  merged = Concat<axis = 0>(batch, six, length, eight)
  flat = Reshape(repeated, merged)
  y = Transpose<perm = [0, 1, 3, 2]>(flat)""",
).replace(
    "int64[1] two = {2}",
    "int64[1] two = {2}, int64[1] half_axis = {3}, int64[1] four_axis = {4}, int64[1] three = {3},"
    " int64[1] six = {6}, int64[1] heads_two = {2}",
)


def value_of(text: str) -> tuple[GraphView, ir.Value]:
    model = ir.from_proto(onnx.parser.parse_model(text))
    optimizer.optimize_ir(model)  # infers the shapes
    return GraphView(model.graph), model.graph.outputs[0]


def match(text: str) -> RotaryMatch | Miss:
    return match_rotary(*value_of(text))


@pytest.mark.parametrize(
    ("text", "rotary_dim", "interleaved", "transposed", "groups"),
    [
        (WHOLE, 8, False, False, 1),
        (WHOLE.replace("Mul(x, c)", "Mul(c, x)"), 8, False, False, 1),
        (WHOLE.replace("Add(straight, turned)", "Add(turned, straight)"), 8, False, False, 1),
        (PARTIAL, 8, False, False, 1),
        (NEIGHBOURS, 8, True, True, 1),
        (JOINED, 8, False, False, 1),
        (KEY, 8, False, False, 3),
    ],
    ids=["whole", "factors-swapped", "terms-swapped", "partial", "neighbours", "joined", "key"],
)
def test_a_rotation_is_recognised_with_its_table(
    text, rotary_dim, interleaved, transposed, groups
):
    found = match(text)
    assert isinstance(found, RotaryMatch), str(found)
    assert found.source.name == "x"
    assert (found.rotary_dim, found.interleaved) == (rotary_dim, interleaved)
    assert (found.transposed, found.groups) == (transposed, groups)
    assert found.table is not None and found.table.multiplier == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(found.table.inv_freq, INV_FREQ, rtol=2e-6)


def test_the_standard_operator_is_recognised():
    text = (
        HEAD.format(x="2,S,8")
        + """
  c = Cos(angle)
  s = Sin(angle)
  y = RotaryEmbedding<interleaved = 1>(x, c, s)
}
"""
    )
    found = match(text)
    assert isinstance(found, RotaryMatch), str(found)
    assert (found.source.name, found.rotary_dim, found.interleaved) == ("x", 8, True)
    assert found.table is not None
    np.testing.assert_allclose(found.table.inv_freq, INV_FREQ, rtol=2e-6)


def test_one_row_of_positions_for_all_sequences():
    text = HEAD.format(x="2,S,8").replace("Cast<to = 1>(position_ids)", "Cast<to = 1>(row)")
    text = text.replace(
        "  place =",
        """  sizes = Shape(position_ids)
  length = Gather(sizes, index)
  tokens = Range(nought, length, index)
  row = Unsqueeze(tokens, zero)
  place =""",
    ).replace("int64[1] two", "int64 index = {1}, int64 nought = {0}, int64[1] two")
    found = match(text + "  c = Cos(angle)\n  s = Sin(angle)\n  y = RotaryEmbedding(x, c, s)\n}\n")
    assert isinstance(found, RotaryMatch), str(found)
    assert found.table is not None
    np.testing.assert_allclose(found.table.inv_freq, INV_FREQ, rtol=2e-6)


def test_a_multiplier_on_cosines_and_sines_is_read():
    text = WHOLE.replace("c = Cos(table)", "c0 = Cos(table)\n  c = Mul(c0, twice)").replace(
        "s = Sin(table)", "s0 = Sin(table)\n  s = Mul(s0, twice)"
    )
    found = match(text)
    assert isinstance(found, RotaryMatch) and found.table is not None, str(found)
    assert found.table.multiplier == pytest.approx(2.0)
    np.testing.assert_allclose(found.table.inv_freq, INV_FREQ, rtol=2e-6)


def test_half_precision_is_read_in_full():
    """float16 holds 0.000002 with an error of 1 %; the table before its cast is exact."""
    text = WHOLE.replace("c = Cos(table)", "c0 = Cos(table)\n  c = Cast<to = 10>(c0)")
    text = text.replace("s = Sin(table)", "s0 = Sin(table)\n  s = Cast<to = 10>(s0)")
    found = match(text.replace("x = Relu(given)", "x0 = Relu(given)\n  x = Cast<to = 10>(x0)"))
    assert isinstance(found, RotaryMatch) and found.table is not None, str(found)
    np.testing.assert_allclose(found.table.inv_freq, INV_FREQ, rtol=2e-6)


def test_what_is_not_rotated_is_told_from_what_is():
    text = HEAD.format(x="S,2,8") + "  y = Transpose<perm = [0, 2, 3, 1]>(x)\n}\n"
    found = match(text)
    assert isinstance(found, RotaryMatch), str(found)
    assert (found.source.name, found.rotary_dim, found.transposed) == ("x", 0, True)
    assert found.table is None


@pytest.mark.parametrize(
    ("text", "old", "new", "reason"),
    [
        (WHOLE, "int64[1] half = {4}", "int64[1] half = {3}", "dim 0 of a head turns with dim 3"),
        (WHOLE, "negated = Neg(second)", "negated = Identity(second)", "not turned by one angle"),
        (WHOLE, "s = Sin(table)", "s = Cos(table)", "change their length by"),
        (WHOLE, "straight = Mul(x, c)", "other = Relu(x)\n  straight = Mul(other, c)", "Relu"),
        (WHOLE, "y = Add(straight, turned)", "y = Sub(straight, turned)", "turns backwards"),
        (
            WHOLE,
            "place = Cast<to = 1>(position_ids)",
            "place0 = Cast<to = 1>(position_ids)\n  place = Mul(place0, place0)",
            "in proportion",
        ),
        (
            WHOLE,
            "c = Cos(table)",
            "c0 = Cos(table)\n  c = Mul(c0, twice)",
            "change their length by",
        ),
        (
            PARTIAL,
            "Slice(x, eight, far, axis, step)",
            "Slice(x, zero, half, axis, step)",
            "(i, i + 6)",
        ),
        (
            PARTIAL,
            "Concat<axis = -1>(rotated, tail)",
            "Concat<axis = -1>(tail, rotated)",
            "dim 0, 4",
        ),
        (
            NEIGHBOURS,
            "int64[5] grouped = {0, 0, 2, 4, 2}",
            "int64[5] grouped = {0, 0, 4, 2, 2}",
            "cannot be run",
        ),
    ],
    ids=[
        "unequal-halves",
        "not-negated",
        "no-sine",
        "two-sources",
        "reversed-in-sign",
        "squared-positions",
        "lengths",
        "other-tail",
        "last-dims",
        "across-heads",
    ],
)
def test_a_rotation_that_is_none_names_its_reason(text, old, new, reason):
    assert old in text
    found = match(text.replace(old, new))
    assert isinstance(found, Miss)
    assert reason in str(found)
    assert "nearest match rotary embedding, stopped at" in str(found)
