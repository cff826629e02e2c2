"""Attentions that take what projections give, on hand-written graphs: what is rewritten, and the
reason where nothing is. Oracle of the numbers: the graph before, in onnxruntime with its
optimisation off."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime as ort
import pytest

from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.spec import Layout, Rotation
from ctx_export.passes.token_major import TokenMajorAttention, keep_tokens_first, match
from ctx_export.patterns.match import Miss

HEADS, KV_HEADS, DIM = 4, 2, 8
ATTENTION = """ctx.SinkWindowAttention<sinks=0, window=0, scale=0.5, softcap=0.0, alias=0,
    bounded=0, rotary_dim=6, interleaved=1, rotation=1, sink_position=0, layout=0,
    optional_inputs="inv_freq,multiplier", plugin_version="1">"""
HEADER = """
<ir_version: 10, opset_import: ["" : 23, "ctx" : 1]>
g (%s, float[B,2,9,8] past_key, float[B,2,9,8] past_value, int64[B] seen, int64[B] new,
   float[1,3] table, float[1] factor)
  => (float[B,S,32] y, float[B,2,9,8] present_key, float[B,2,9,8] present_value)
<int64[4] heads = {0, 0, 4, 8}, int64[4] groups = {0, 0, 2, 8}, int64[3] flat = {0, 0, 32},
 int64[4] all_heads = {0, 0, 8, 8}, int64[3] counts = {4, 2, 2},
 int64[3] widths = {32, 16, 16}, int64[1] zero = {0}, int64[1] two = {2},
 int64[1] q_end = {32}, int64[1] k_end = {48}, int64[1] v_end = {64}, int64[1] last = {-1},
 float[8] gain = {1, 2, 3, 4, 5, 6, 7, 8},
 float square = {2.0}, int64[4] same = {0, 0, 0, 0}>
{
"""
SPLIT_HEADS = """
  q4 = Reshape(q, heads)
  k4 = Reshape(k, groups)
  v4 = Reshape(v, groups)
  qh = Transpose<perm = [0, 2, 1, 3]>(q4)
  kh = Transpose<perm = [0, 2, 1, 3]>(k4)
  vh = Transpose<perm = [0, 2, 1, 3]>(v4)
"""
ATTEND = f"""
  a, present_key, present_value = {ATTENTION}
    (qh, kh, vh, past_key, past_value, seen, new, table, factor)
"""
JOIN_HEADS = """
  a4 = Transpose<perm = [0, 2, 1, 3]>(a)
  joined = Reshape(a4, flat)
  y = Abs(joined)
}
"""
APART = "float[B,S,32] q, float[B,S,16] k, float[B,S,16] v"
PLAIN = HEADER % APART + SPLIT_HEADS + ATTEND + JOIN_HEADS
PACKED = (
    HEADER % "float[B,S,64] x"
    + "q, k, v = Split<axis = -1>(x, widths)"
    + SPLIT_HEADS
    + ATTEND
    + JOIN_HEADS
)
SLICED = PACKED.replace(
    "q, k, v = Split<axis = -1>(x, widths)",
    "q = Slice(x, zero, q_end, two)\n  k = Slice(x, q_end, k_end, two)\n"
    "  v = Slice(x, k_end, v_end, last)",
)
# As onnxruntime-genai's packed GroupQueryAttention becomes standard operators.
PACKED_HEADS = (
    HEADER % "float[B,S,64] x"
    + """
  x4 = Reshape(x, all_heads)
  xh = Transpose<perm = [0, 2, 1, 3]>(x4)
  qh, kh, vh = Split<axis = 1>(xh, counts)
"""
    + ATTEND
    + JOIN_HEADS
)
# A norm of q's heads behind the swap, as gemma3 has it.
NORMED = PLAIN.replace("(qh, kh,", "(qn, kh,").replace(
    "\n  a, present",
    "\n  power = Pow(qh, square)\n  mean = ReduceMean(power, last)\n  root = Sqrt(mean)\n"
    "  unit = Div(qh, root)\n  qn = Mul(unit, gain)\n  a, present",
)
ONE_FOR_KEYS_AND_VALUES = NORMED.replace("(qn, kh, vh,", "(qh, kn, kn,").replace("qn =", "kn =")
ONE_FOR_KEYS_AND_VALUES = ONE_FOR_KEYS_AND_VALUES.replace("Pow(qh", "Pow(kh").replace(
    "Div(qh", "Div(kh"
)
BEFORE_SWAP = PLAIN.replace(
    "qh = Transpose<perm = [0, 2, 1, 3]>(q4)",
    "qn = RMSNormalization(q4, gain)\n  qh = Transpose<perm = [0, 2, 1, 3]>(qn)",
)
# torch reshapes y to its own shape before the swap; a gate per head reads it before heads join.
GATED = PLAIN.replace(
    "a4 = Transpose<perm = [0, 2, 1, 3]>(a)",
    "again = Reshape(a, same)\n  swapped = Transpose<perm = [0, 2, 1, 3]>(again)\n"
    "  a4 = Mul(swapped, gain)",
)
# Whatever sizes a file leaves unnamed.
UNNAMED = BEFORE_SWAP.replace("heads = {0, 0,", "heads = {2, 3,").replace(
    "groups = {0, 0,", "groups = {2, 3,"
)


def parsed(text: str) -> ir.Model:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    model.graph.sort()
    for node in model.graph:
        if node.op_type == "SinkWindowAttention":
            node.outputs[0].shape = ir.Shape(["B", HEADS, "S", DIM])
            node.outputs[0].dtype = ir.DataType.FLOAT
            for user in [use.node for use in node.outputs[0].uses()]:
                if user.op_type == "Reshape":
                    user.outputs[0].shape = ir.Shape(["B", HEADS, "S", DIM])
    return model


def attention(model: ir.Model) -> ir.Node:
    (node,) = [n for n in model.graph if n.op_type == "SinkWindowAttention"]
    return node


VARIANT = AttentionVariant(optional=("inv_freq", "multiplier"), rotation=Rotation.ON_WRITE)


def rewritten(text: str) -> tuple[ir.Model, AttentionVariant]:
    model = parsed(text)
    after = replace(VARIANT, layout=keep_tokens_first(model.graph))
    common_passes.RemoveUnusedNodesPass()(model)
    return model, after


def outputs(model: ir.Model, body: AttentionVariant) -> list[np.ndarray]:
    """What onnxruntime computes for two sequences, of which one begins."""
    model = model.clone()
    function = sink_window_attention(body)
    model.functions[function.identifier()] = function
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(3)
    feeds = {"seen": np.array([0, 5]), "new": np.array([3, 2]), "factor": np.ones(1, np.float32)}
    for value in session.get_inputs():
        if value.name not in feeds:
            shape = [{"B": 2, "S": 3}.get(size, size) for size in value.shape]
            feeds[value.name] = random.standard_normal(shape).astype(np.float32)
    return session.run(None, feeds)


@pytest.mark.parametrize(
    ("text", "layout", "given", "left"),
    [
        (PLAIN, Layout.TOKEN_MAJOR, ["q", "k", "v"], []),
        (PACKED, Layout.PACKED, ["x", "x", "x"], []),
        (PACKED.replace("axis = -1", "axis = 2"), Layout.PACKED, ["x", "x", "x"], []),
        (SLICED, Layout.PACKED, ["x", "x", "x"], []),
        (PACKED_HEADS, Layout.PACKED, ["x", "x", "x"], []),
        (
            NORMED,
            Layout.TOKEN_MAJOR,
            ["qn.by_token", "k", "v"],
            ["Reshape", "Pow", "ReduceMean", "Sqrt", "Div", "Mul", "Reshape"],
        ),
        (
            ONE_FOR_KEYS_AND_VALUES,
            Layout.TOKEN_MAJOR,
            ["q", "kn.by_token", "kn.by_token"],
            ["Reshape", "Pow", "ReduceMean", "Sqrt", "Div", "Mul", "Reshape"],
        ),
        (
            BEFORE_SWAP,
            Layout.TOKEN_MAJOR,
            ["qn.by_token", "k", "v"],
            ["Reshape", "RMSNormalization", "Reshape"],
        ),
        (GATED, Layout.TOKEN_MAJOR, ["q", "k", "v"], ["Reshape", "Mul", "Reshape"]),
        (
            UNNAMED,
            Layout.TOKEN_MAJOR,
            ["qn.by_token", "k4.by_token", "v4.by_token"],
            ["Reshape", "Reshape", "Reshape", "RMSNormalization", "Reshape", "Reshape", "Reshape"],
        ),
        (
            PLAIN.replace("flat = {0, 0, 32}", "flat = {2, 3, 32}"),
            Layout.TOKEN_MAJOR,
            ["q", "k", "v"],
            ["Reshape"],
        ),
    ],
    ids=[
        "apart",
        "split",
        "split along axis 2",
        "sliced",
        "heads split",
        "norm behind the swap",
        "one value for k and v",
        "norm before the swap",
        "gate behind",
        "sizes that nothing names",
        "joined heads that nothing names",
    ],
)
def test_projections_reach_the_attention(text, layout, given, left):
    model, after = rewritten(text)
    assert after.layout == layout
    node = attention(model)
    assert node.attributes["layout"].as_int() == layout
    assert [value.name for value in node.inputs[:3]] == given
    others = [n.op_type for n in model.graph if n is not node and n.op_type != "Constant"]
    assert others == [*left, "Abs"]
    for got, want in zip(outputs(model, after), outputs(parsed(text), VARIANT), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("widths = {32, 16, 16}", "widths = {16, 16, 32}"),
        (
            "k4 = Reshape(k, groups)\n  v4 = Reshape(v, groups)",
            "k4 = Reshape(v, groups)\n  v4 = Reshape(k, groups)",
        ),
        ("float[B,S,64] x", "float[B,S,64] x, float[B,S,16] other"),
    ],
    ids=["q last", "v before k", "v from elsewhere"],
)
def test_what_is_packed_otherwise_stays_split(old, new):
    text = PACKED.replace(old, new)
    if "{16, 16, 32}" in new:
        text = text.replace("q, k, v = Split", "v, k, q = Split")
    if "other" in new:
        text = text.replace("v4 = Reshape(v,", "v4 = Reshape(other,")
    model, after = rewritten(text)
    assert after.layout == Layout.TOKEN_MAJOR
    for got, want in zip(outputs(model, after), outputs(parsed(text), VARIANT), strict=True):
        np.testing.assert_array_equal(got, want)


SWAP = "Transpose<perm = [0, 2, 1, 3]>"
READ_TWICE = f"b = Abs(a)\n  c = {SWAP}(a)\n  d = {SWAP}(b)\n  a4 = Add(c, d)"
NEGATIVE = {
    "another swap": (PLAIN, f"kh = {SWAP}", "kh = Transpose<perm = [0, 2, 3, 1]>", "k is no"),
    "no swap": (PLAIN, "(qh, kh, vh,", "(qh, kh, past_value,", "but input past_value"),
    "a norm over tokens": (NORMED, "ReduceMean(power, last)", "ReduceMean(power, two)", "q is no"),
    "a norm that drops an axis": (NORMED, "ReduceMean(", "ReduceMean<keepdims = 0>(", "q is no"),
    "a norm that others read": (NORMED, "= Reshape(a4,", "= Reshape(qn,", "q is no"),
    "a softmax of the heads": (NORMED, "Sqrt(mean)", "Softmax(mean)", "q is no"),
    "heads split in another order": (
        PACKED_HEADS,
        "(qh, kh, vh,",
        "(qh, vh, kh,",
        "q is no [batch, token, head, dim] with heads brought first, but Split (qh)",
    ),
    "heads split across tokens": (PACKED_HEADS, "Split<axis = 1>", "Split<axis = 3>", "q is no"),
    "y by head": (
        PLAIN,
        f"a4 = {SWAP}(a)",
        "a4 = Identity(a)",
        "y is no result whose tokens are brought first, but goes to Identity (a4)",
    ),
    "y read twice": (PLAIN, f"a4 = {SWAP}(a)", READ_TWICE, "a has 2 readers"),
    "a second q": (
        PLAIN.replace("rotation=1", "rotation=0").replace("rotary_dim=6", "rotary_dim=0"),
        '"inv_freq,multiplier"',
        '"sink_q,inv_freq"',
        "a sink_q is given by head",
    ),
}


@pytest.mark.parametrize(("text", "old", "new", "reason"), NEGATIVE.values(), ids=NEGATIVE)
def test_what_cannot_be_stays_and_names_its_reason(text, old, new, reason, caplog):
    assert old in text
    model = parsed(text.replace(old, new))
    found = match(attention(model))
    assert isinstance(found, Miss)
    assert reason in str(found)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with caplog.at_level(logging.INFO, "ctx_export.passes.token_major"):
        assert keep_tokens_first(model.graph) == Layout.HEAD_MAJOR
    assert reason in caplog.text
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def two_layers(first: str, second: str) -> ir.Model:
    """Two attentions in one graph; the second's names end in _2."""
    for name in ("q4", "k4", "v4", "x4", "xh", "qh", "kh", "vh", "a"):
        second = re.sub(rf"\b{name}\b", f"{name}_2", second)
    second = second.replace("present_", "later_") + f"  swapped_2 = {SWAP}(a_2)"
    return parsed(HEADER % f"{APART}, float[B,S,64] x" + first + second + JOIN_HEADS)


@pytest.mark.parametrize(
    ("second", "matches"),
    [
        (SPLIT_HEADS.replace(f"qh = {SWAP}(q4)", "qh = Identity(q4)") + ATTEND, Miss),
        (PACKED_HEADS.split("{\n")[1].removesuffix(JOIN_HEADS), TokenMajorAttention),
    ],
    ids=["one cannot", "one can be packed only"],
)
def test_layers_without_a_layout_in_common_stay_as_they_are(second, matches):
    """They share one function body."""
    model = two_layers(SPLIT_HEADS + ATTEND, second)
    nodes = [n for n in model.graph if n.op_type == "SinkWindowAttention"]
    assert [type(match(node)) for node in nodes] == [TokenMajorAttention, matches]
    assert keep_tokens_first(model.graph) == Layout.HEAD_MAJOR
    assert all(node.attributes["layout"].as_int() == 0 for node in nodes)
