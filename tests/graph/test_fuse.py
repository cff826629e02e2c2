"""Rotation moved into the attention on hand-written graphs: what is fused, and the reason where
nothing is. Oracle of the numbers: the graph before, in onnxruntime with its optimisation off."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import Rotation
from ctx_export.passes.fuse import RotatedAttention, fuse, match
from ctx_export.patterns.match import Miss

ROTATE = 'ctx.ScaledRotaryEmbedding<rotary_dim=6, interleaved=1, plugin_version="1">'
# Sinks, and a second q for them, over rotated keys in a ring of 9 slots after 2 sinks.
LAYER = f"""
<ir_version: 10, opset_import: ["" : 23, "ctx" : 1]>
g (float[B,4,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[B,2,11,8] past_key,
   float[B,2,11,8] past_value, int64[B] seen, int64[B] new, float[B,3] tables, float[1] factor)
  => (float[B,4,S,8] y, float[B,2,11,8] present_key, float[B,2,11,8] present_value)
<int64[1] axis = {{1}}, int64 zero = {{0}}, int64 one = {{1}}, int64 limit = {{6}}>
{{
  shape = Shape<start = 2, end = 3>(q)
  count = Squeeze(shape)
  rows = Range(zero, count, one)
  column = Unsqueeze(seen, axis)
  positions = Add(column, rows)
  near = Min(positions, limit)
  q_turned = {ROTATE}(q, positions, tables, factor)
  k_turned = {ROTATE}(k, positions, tables, factor)
  q_sinks = {ROTATE}(q, near, tables, factor)
  y, present_key, present_value = ctx.SinkWindowAttention<sinks=2, window=5, scale=0.5,
    softcap=0.0, alias=0, bounded=1, rotary_dim=0, interleaved=0, rotation=0, sink_position=0,
    optional_inputs="sink_q", plugin_version="1">
    (q_turned, k_turned, v, past_key, past_value, seen, new, q_sinks)
}}
"""
KEYS_ON_READ = (
    LAYER.replace("(q_turned, k_turned,", "(q_turned, k,")
    .replace("new, q_sinks)", "new, q_sinks, tables, factor)")
    .replace('"sink_q"', '"sink_q,inv_freq,multiplier"')
    .replace("rotary_dim=0, interleaved=0", "rotary_dim=6, interleaved=1")
)
ONE_QUERY = LAYER.replace("new, q_sinks)", "new)").replace('"sink_q"', '""')
TABLES = ("inv_freq", "multiplier")


def parsed(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def variant(text: str) -> AttentionVariant:
    (node,) = [n for n in parsed(text).graph if n.op_type == "SinkWindowAttention"]
    names = node.attributes["optional_inputs"].as_string().split(",")
    return AttentionVariant(bounded=True, optional=tuple(name for name in names if name))


def fused(text: str) -> tuple[ir.Model, AttentionVariant]:
    model = parsed(text)
    after = fuse(model.graph, variant(text))
    return model, after


def outputs(model: ir.Model, body: AttentionVariant) -> list[np.ndarray]:
    """What onnxruntime computes: three sequences, of which one has wrapped and one is empty."""
    for function in (scaled_rotary_embedding(), sink_window_attention(body)):
        model.functions[function.identifier()] = function
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(2)
    sizes = {"q": (4, 4), "k": (2, 4), "v": (2, 4), "past_key": (2, 11), "past_value": (2, 11)}
    feeds = {
        name: random.standard_normal((3, heads, rows, 8)).astype(np.float32)
        for name, (heads, rows) in sizes.items()
    }
    feeds |= {"seen": np.array([0, 5, 60]), "new": np.array([4, 3, 4])}
    feeds |= {"tables": random.uniform(0, 1, (3, 3)).astype(np.float32)}
    return session.run(None, {**feeds, "factor": np.array([1.25], np.float32)})


@pytest.mark.parametrize(
    ("text", "rotation", "sink_position"),
    [
        (LAYER, Rotation.ON_WRITE, 6),
        (KEYS_ON_READ, Rotation.QUERY_AND_KEYS_ON_READ, 6),
        (ONE_QUERY, Rotation.ON_WRITE, 0),
        (LAYER.replace("new, q_sinks)", "new, q_turned)"), Rotation.ON_WRITE, 0),
    ],
    ids=["keys rotated", "keys on read", "one query", "the same query twice"],
)
def test_rotation_moves_into_the_attention(text, rotation, sink_position):
    model, after = fused(text)
    assert after == AttentionVariant(
        bounded=True, optional=TABLES, rotation=rotation, sink_position=sink_position > 0
    )
    (node,) = [n for n in model.graph if n.op_type == "SinkWindowAttention"]
    assert [value.name for value in node.inputs] == [
        *("q", "k", "v", "past_key", "past_value", "seen", "new", "tables", "factor")
    ]
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    assert given == {
        "sinks": 2,
        "window": 5,
        "scale": 0.5,
        "softcap": 0.0,
        "alias": 0,
        "bounded": 1,
        "rotary_dim": 6,
        "interleaved": 1,
        "rotation": rotation,
        "plugin_version": "1",
        "sink_position": sink_position,
        "optional_inputs": "inv_freq,multiplier",
    }
    turned = [n for n in model.graph if n.op_type == "ScaledRotaryEmbedding"]
    assert turned and not any(n.outputs[0].uses() for n in turned)
    before = outputs(parsed(text), variant(text))
    for got, want in zip(outputs(model, after), before, strict=True):
        np.testing.assert_array_equal(got, want)


NORMED = LAYER.replace("(q_turned, k_turned,", "(q_normed, k_turned,").replace(
    "  k_turned =", "  q_normed = Abs(q_turned)\n  k_turned ="
)
NEGATIVE: dict[str, tuple[str, str, str, str]] = {
    "norm after the rotation": (NORMED, "", "", "q is no rotation, but Abs"),
    "other positions": (
        LAYER,
        "= Add(column, rows)",
        "= Mul(column, rows)",
        "q is at Mul (positions), not at seen + 0…S-1",
    ),
    "another start": (LAYER, "Range(zero, count, one)", "Range(one, count, one)", "q is at Add"),
    "another step": (LAYER, "Range(zero, count, one)", "Range(zero, count, limit)", "q is at Add"),
    "another sequence": (LAYER, "Unsqueeze(seen, axis)", "Unsqueeze(new, axis)", "q is at Add"),
    "k elsewhere": (LAYER, "(k, positions,", "(k, near,", "k is not rotated as q is, but Scaled"),
    "k as given": (LAYER, "(q_turned, k_turned,", "(q_turned, k,", "q is, but input k"),
    "k's pairs": (
        LAYER,
        "k_turned = " + ROTATE,
        "k_turned = " + ROTATE.replace("ed=1", "ed=0"),
        "k is not rotated as q is",
    ),
    "k's dims": (
        LAYER,
        "k_turned = " + ROTATE,
        "k_turned = " + ROTATE.replace("=6", "=4"),
        "k is not rotated as q is",
    ),
    "k's factor": (
        LAYER,
        "(k, positions, tables, factor)",
        "(k, positions, tables, one)",
        "k is not rotated as q is",
    ),
    "cached keys' pairs": (
        KEYS_ON_READ,
        "rotary_dim=6, interleaved=1, rotation",
        "rotary_dim=6, interleaved=0, rotation",
        "k is not rotated as q is",
    ),
    "cached keys' factor": (
        KEYS_ON_READ,
        "q_sinks, tables, factor)",
        "q_sinks, tables, one)",
        "k is not rotated as q is",
    ),
    "sinks met by k": (LAYER, "(q, near,", "(k, near,", "sink_q is no second rotation of q"),
    "sinks farther away": (LAYER, "Min(positions", "Max(positions", "but ScaledRotaryEmbedding"),
    "sinks at 0": (LAYER, "limit = {6}", "limit = {0}", "sink_q is no second rotation of q"),
    "sinks by row": (LAYER, "Min(positions, limit)", "Min(rows, limit)", "no second rotation"),
}


@pytest.mark.parametrize(("text", "old", "new", "reason"), NEGATIVE.values(), ids=NEGATIVE)
def test_what_cannot_be_fused_stays_and_names_its_reason(text, old, new, reason, caplog):
    assert old in text
    text = text.replace(old, new) if old else text
    model = parsed(text)
    (node,) = [n for n in model.graph if n.op_type == "SinkWindowAttention"]
    found = match(node)
    assert isinstance(found, Miss)
    assert reason in str(found)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with caplog.at_level(logging.INFO, "ctx_export.passes.fuse"):
        assert fuse(model.graph, variant(text)) == variant(text)
    assert reason in caplog.text
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_one_layer_that_cannot_keeps_all_as_they_are():
    """They share one function body."""
    body = LAYER[LAYER.index("{\n") + 2 : LAYER.rindex("}")]
    second = body[body.index("  q_turned") :]
    for name in ("y", "present_key", "present_value", "q_turned", "k_turned", "q_sinks"):
        second = second.replace(f"{name} ", f"{name}_2 ").replace(f"{name},", f"{name}_2,")
    second = second.replace("(q_turned_2, k_turned_2,", "(q, k_turned_2,")
    model = parsed(LAYER[: LAYER.rindex("}")] + second + "}")
    nodes = [n for n in model.graph if n.op_type == "SinkWindowAttention"]
    assert [type(match(node)) for node in nodes] == [RotatedAttention, Miss]
    assert fuse(model.graph, variant(LAYER)) == variant(LAYER)
    assert all(node.attributes["rotation"].as_int() == 0 for node in nodes)
