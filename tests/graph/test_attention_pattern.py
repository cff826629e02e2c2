"""Attention as plain operators on hand-written graphs: what matches, with which numbers, and the
reason where it does not. That a rewritten one computes the same is e2e/test_decoders."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from ctx_export.patterns.attention import AttentionMatch, is_attention, match_attention
from ctx_export.patterns.match import Miss

# Softmax(5·tanh(q·kT·0.25 / 5) + mask, joined by a logit per head) without its last column · v
GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,4,S,16] q0, float[B,4,S,16] k0, float[B,4,S,16] v0, float[B,1,S,S] mask,
   int64[4] column, float[4] sink, float[2,2] fixed) => (float[B,4,S,16] y)
<float scale = {0.25}, float cap = {5.0}, int64[1] zero = {0}, int64[1] end = {-1},
 int64[1] last = {3}, int64[4] heads = {1, 4, 1, 1}, int64[1] step = {1}>
{
  q = Identity(q0)
  k = Abs(k0)
  v = Abs(v0)
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  scores = MatMul(q, kt)
  scaled = Mul(scores, scale)
  small = Div(scaled, cap)
  bent = Tanh(small)
  capped = Mul(bent, cap)
  masked = Add(capped, mask)
  shaped = Reshape(sink, heads)
  sinks = Expand(shaped, column)
  joined = Concat<axis = -1>(masked, sinks)
  largest = ReduceMax<keepdims = 1>(joined, last)
  shifted = Sub(joined, largest)
  weights = Softmax<axis = -1>(shifted)
  kept = Slice(weights, zero, end, last, step)
  y = MatMul(kept, v)
}
"""


def softmax_of(text: str) -> ir.Node:
    model = ir.from_proto(onnx.parser.parse_model(text))
    optimizer.optimize_ir(model)
    (node,) = [node for node in model.graph if node.op_type == "Softmax"]
    return node


def test_scale_cap_and_learned_sinks_are_read():
    node = softmax_of(GRAPH)
    assert is_attention(node)
    found = match_attention(node)
    assert isinstance(found, AttentionMatch), str(found)
    assert (found.scale, found.softcap) == (0.25, 5.0)
    assert found.head_sink is not None and found.head_sink.name == "sink"
    assert found.k.name == "k" and found.v.name == "v" and found.y.name == "y"
    assert not found.key_transposed


def test_divisors_multiply_and_a_plain_one_has_neither_cap_nor_sinks():
    text = GRAPH.replace("Mul(scores, scale)", "Div(scores, scale)")
    text = text.replace("Add(capped, mask)", "Add(mask, scaled)")
    text = text.replace("Softmax<axis = -1>(shifted)", "Softmax<axis = -1>(masked)")
    text = text.replace("MatMul(kept, v)", "MatMul(weights, v)")
    found = match_attention(softmax_of(text))
    assert isinstance(found, AttentionMatch), str(found)
    assert (found.scale, found.softcap, found.head_sink) == (4.0, 0.0, None)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Add(capped, mask)", "Sub(capped, mask)", "expected logits + mask"),
        ("Transpose<perm = [0, 1, 3, 2]>(k)", "Transpose<perm = [0, 1, 2, 3]>(k)", "transposed"),
        ("Expand(shaped, column)", "Expand(scaled, column)", "no learned logit per head"),
    ],
)
def test_an_attention_that_is_none_names_its_reason(old, new, reason):
    assert old in GRAPH
    found = match_attention(softmax_of(GRAPH.replace(old, new)))
    assert isinstance(found, Miss) and reason in str(found)


def test_a_softmax_that_weighs_nothing_is_no_attention():
    """A router's goes to TopK, another's product is with a weight."""
    for product in ("y = Abs(kept)", "y = MatMul(kept, fixed)"):
        text = GRAPH.replace("y = MatMul(kept, v)", product)
        assert not is_attention(softmax_of(text))
