"""Which parts of a graph are taken to compute the same. Oracle: graphs written by hand."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from ctx_export.patterns.alike import Alike
from ctx_export.patterns.graph_view import GraphView

# Two layers over projections a and b; the second is varied.
TWO = """
<ir_version: 10, opset_import: ["" : 23]>
g (int64[B,S] input_ids, int64[B,S] position_ids) => (float[B,S] y, float[B,S] z)
<float[2] table = {0.5, 0.25}, float[2] same = {0.5, 0.25}, float[2] other = {0.5, 0.2},
 float minus = {-1.0}, int64[1] last = {-1}>
{
  a = Cast<to = 1>(input_ids)
  b = Neg(a)
  place = Cast<to = 1>(position_ids)
  first = ReduceSum(table)
  p = Mul(place, first)
  q = Cos(p)
  y = Mul(a, q)
  second = ReduceSum(same)
  r = Mul(place, second)
  s = Cos(r)
  z = Mul(b, s)
}
"""


def runs(text: str, *beside: tuple[float, ...]) -> int:
    """How many of the two layers are computed."""
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))).graph
    values = {v.name: v for node in graph for v in node.outputs}
    alike, calls = Alike(GraphView(graph)), []
    for place, (output, source) in enumerate((("y", "a"), ("z", "b"))):
        extra = beside[place] if beside else ()
        alike.once([values[output]], [values[source]], lambda: calls.append(1), extra)
    return len(calls)


def test_layers_of_equal_numbers_under_other_names_are_computed_once():
    assert runs(TWO) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ReduceSum(same)", "ReduceSum(other)"),
        ("ReduceSum(same)", "ReduceSum<keepdims = 0>(same)"),
        ("s = Cos(r)", "s = Sin(r)"),
        ("z = Mul(b, s)", "z = Mul(s, b)"),
        ("r = Mul(place, second)", "r = Mul(second, second)"),
        ("b = Neg(a)", "n = Neg(a)\n  b = Unsqueeze(n, last)"),
    ],
    ids=["numbers", "attribute", "operator", "order", "input", "shape"],
)
def test_a_difference_is_seen(old, new):
    assert old in TWO
    assert runs(TWO.replace(old, new)) == 2


def test_facts_beside_the_graph_are_compared():
    assert runs(TWO, (0.25,), (0.25,)) == 1
    assert runs(TWO, (0.25,), (0.5,)) == 2
