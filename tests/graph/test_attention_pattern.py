"""Attention as plain operators on hand-written graphs: what is recognised, with which numbers and
window, and why not. Oracle: what each graph was written to compute.

That a rewritten attention computes the same is tested end to end.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from ctx_export.core.errors import UserError
from ctx_export.passes.locate import Site, find_sites
from ctx_export.patterns.attention import is_attention

# Softmax(5·tanh(q·kᵀ·0.25 / 5) + mask, joined by a logit per head) without its last column · v
GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,4,S,16] q0, float[B,2,S,16] k0, float[B,2,S,16] v0, int64[B,S] position_ids,
   float[2,2] fixed) => (float[B,4,S,16] y)
<float scale = {0.25}, float cap = {5.0}, int64[1] zero = {0}, int64[1] end = {-1},
 int64[1] last = {3}, int64[4] heads = {1, 4, 1, 1}, int64[1] step = {1}, int64 none = {0},
 int64 one = {1}, int64[1] two = {2}, int64 window = {1000}, float low = {-10000.0},
 float nothing = {0.0}, float[4] sink = {0.5, -1.0, 2.0, 0.0}, int64[1] axis = {1},
 int64[5] grouped = {1, 2, 2, 1, 16}, int64[4] flat = {0, 4, -1, 16}, int64[1] single = {1}>
{
  q = Relu(q0)
  k = Abs(k0)
  v = Abs(v0)
  wide_k = Unsqueeze(k, two)
  all_k = Expand(wide_k, grouped)
  kk = Reshape(all_k, flat)
  wide_v = Unsqueeze(v, two)
  all_v = Expand(wide_v, grouped)
  vv = Reshape(all_v, flat)
  sizes = Shape(position_ids)
  length = Gather(sizes, one)
  tokens = Range(none, length, one)
  rows = Unsqueeze(tokens, axis)
  columns = Unsqueeze(tokens, zero)
  distance = Sub(rows, columns)
  before = GreaterOrEqual(distance, none)
  near = Less(distance, window)
  seen = And(before, near)
  mask = Where(seen, nothing, low)
  kt = Transpose<perm = [0, 1, 3, 2]>(kk)
  scores = MatMul(q, kt)
  scaled = Mul(scores, scale)
  small = Div(scaled, cap)
  bent = Tanh(small)
  capped = Mul(bent, cap)
  masked = Add(capped, mask)
  batch = Slice(sizes, zero, single)
  dims = Shape(masked)
  per_row = Slice(dims, zero, last)
  column = Concat<axis = 0>(per_row, single)
  shaped = Reshape(sink, heads)
  sinks = Expand(shaped, column)
  joined = Concat<axis = -1>(masked, sinks)
  largest = ReduceMax<keepdims = 1>(joined, last)
  shifted = Sub(joined, largest)
  weights = Softmax<axis = -1>(shifted)
  kept = Slice(weights, zero, end, last, step)
  y = MatMul(kept, vv)
}
"""
PLAIN = (
    GRAPH.replace("Add(capped, mask)", "Add(mask, scaled)")
    .replace("Softmax<axis = -1>(shifted)", "Softmax<axis = -1>(masked)")
    .replace("MatMul(kept, vv)", "MatMul(weights, vv)")
)


def graph_of(text: str) -> ir.Graph:
    model = ir.from_proto(onnx.parser.parse_model(text))
    optimizer.optimize_ir(model)
    return model.graph


def site_of(text: str) -> Site:
    (site,) = find_sites(graph_of(text))
    return site


def test_scale_cap_window_and_learned_sinks_are_read():
    site = site_of(GRAPH)
    found = site.attention
    assert (found.scale, found.softcap, site.window) == (0.25, 5.0, 1000)
    assert found.head_sink is not None and sorted(found.head_sink.const_value.numpy().ravel()) == [
        -1,
        0,
        0.5,
        2,
    ]
    assert [part.source.name for part in (site.query, site.key, site.value)] == ["q", "k", "v"]
    assert (site.sizes, site.key.groups) == ((4, 2, 16), 2)
    assert (site.query.rotary_dim, site.transposed, found.y.name) == (0, False, "y")


@pytest.mark.parametrize("window", [1, 4, 8, 37, 1000, 131072])
def test_windows_of_any_width_are_read_from_the_mask(window):
    assert site_of(PLAIN.replace("window = {1000}", f"window = {{{window}}}")).window == window


def test_a_window_written_inclusively_is_one_longer():
    assert site_of(PLAIN.replace("Less(distance", "LessOrEqual(distance")).window == 1001


def test_divisors_multiply_and_a_plain_one_has_neither_cap_nor_sinks_nor_window():
    text = PLAIN.replace("Mul(scores, scale)", "Div(scores, scale)")
    site = site_of(text.replace("And(before, near)", "Identity(before)"))
    found = site.attention
    assert (found.scale, found.softcap, found.head_sink, site.window) == (4.0, 0.0, None, 0)


def test_scores_that_are_replaced_where_nothing_is_seen_and_rows_without_numbers():
    text = PLAIN.replace("Add(mask, scaled)", "Where(seen, scaled, low)")
    text = text.replace(
        "  y = MatMul(weights, vv)",
        "  odd = IsNaN(weights)\n  sane = Where(odd, nothing, weights)\n  y = MatMul(sane, vv)",
    )
    assert site_of(text).window == 1000


def test_factors_on_queries_and_keys_make_the_scale():
    text = PLAIN.replace("MatMul(q, kt)", "MatMul(qs, ks)")
    text = text.replace(
        "Transpose<perm = [0, 1, 3, 2]>(kk)",
        "Transpose<perm = [0, 1, 3, 2]>(kk)\n  qs = Mul(q, scale)\n  ks = Div(kt, cap)",
    )
    assert site_of(text).attention.scale == pytest.approx(0.25 * 0.25 / 5)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Add(mask, scaled)", "Mul(mask, scaled)", "not scaled by one number"),
        ("Add(mask, scaled)", "Add(scaled, scores)", "two computed tensors"),
        ("MatMul(q, kt)", "MatMul(kk, kt)", "not three tensors"),
        ("(kk)", "(q)", "(heads, dim)"),
        ("Greater", "Less", "see those after them"),
        ("And(before, near)", "Or(before, near)", "see those after them"),
        ("And(before, near)", "And(before, even)", "neither causal nor a window"),
        ("Where(seen, nothing, low)", "Where(seen, slope, low)", "ALiBi"),
    ],
)
def test_an_attention_that_is_none_names_its_reason(old, new, reason):
    more = """
  parity = Mod(distance, two)
  even = Equal(parity, none)
  slope = Cast<to = 1>(columns)
"""
    text = PLAIN.replace("  before =", more + "  before =")
    assert old in text
    with pytest.raises(UserError) as caught:
        site_of(text.replace(old, new))
    assert reason in str(caught.value), str(caught.value)


def test_a_mask_that_would_fill_the_memory_is_not_run():
    """A hostile file: 2^40 numbers, of which one is read."""
    huge = """
  many = ConstantOfShape(count)
  nothing_more = ReduceMax<keepdims = 0>(many)
  lower = Add(low, nothing_more)
"""
    text = PLAIN.replace("  mask =", huge + "  mask =").replace("nothing, low)", "nothing, lower)")
    text = text.replace("int64[1] axis", "int64[1] count = {1099511627776}, int64[1] axis")
    model = ir.from_proto(onnx.parser.parse_model(text))
    optimizer.optimize_ir(model, should_fold=lambda node: False)
    with pytest.raises(UserError, match=r"makes 1.1e[+]12 numbers at once"):
        find_sites(model.graph)


def test_a_learned_sink_that_is_no_logit_per_head_is_refused():
    with pytest.raises(UserError, match="no learned logit per head"):
        site_of(GRAPH.replace("Expand(shaped, column)", "Expand(scaled, column)"))


def test_a_softmax_that_weighs_nothing_is_no_attention():
    """A router's goes to TopK, another's product is with a weight."""
    for product in ("y = Abs(kept)", "y = MatMul(kept, fixed)"):
        graph = graph_of(GRAPH.replace("y = MatMul(kept, vv)", product))
        assert not any(is_attention(node) for node in graph)
