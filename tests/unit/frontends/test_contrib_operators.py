"""Lowering com.microsoft's attention: the oracle is onnxruntime's own kernel for the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ctx_export.core.errors import UserError
from ctx_export.frontends.contrib_operators import lower
from tests.support.contrib_graphs import parse, run
from tests.support.source_attention import add_bodies

B, S, HEADS, KV_HEADS, D, ROWS = 2, 7, 4, 2, 32, 9
PAST = {"past_k": (B, KV_HEADS, 0, D), "past_v": (B, KV_HEADS, 0, D)}
LENGTHS = {"seqlens": np.full(B, S - 1, np.int32), "total": np.array(S, np.int32)}
ONE_TENSOR = {"qkv": (B, S, (HEADS + 2 * KV_HEADS) * D)}
THREE_TENSORS = {"q": (B, S, HEADS * D), "k": (B, S, KV_HEADS * D), "v": (B, S, KV_HEADS * D)}
OWN = {"position_ids": np.tile(np.arange(S), (B, 1))}


def tables(columns: int) -> dict[str, np.ndarray]:
    angles = np.arange(ROWS)[:, None] * 10.0 ** -np.arange(columns)[None]
    return {"cos": np.cos(angles).astype("f"), "sin": np.sin(angles).astype("f")}


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {name: generator.normal(size=shape).astype("f") for name, shape in shapes.items()}


def lowered(model: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(model)
    lower(result)
    return result


def assert_same(body: str, feeds: dict[str, Any], held: dict[str, Any]) -> ir.Model:
    """Lower the graph, and compare it with onnxruntime's own kernels; the lowered graph."""
    model = parse(body, feeds, held)
    result = lowered(model)
    left = {node.op_type for node in result.graph if node.domain == "com.microsoft"}
    assert not left
    got = run(add_bodies(result), OWN | feeds)
    np.testing.assert_allclose(got, run(model, feeds), atol=2e-6, rtol=0)
    return result


def group_query(attributes: str, rest: str = "", *, packed: bool = True) -> str:
    """A GroupQueryAttention; `rest`: its inputs after total_sequence_length."""
    given = 'qkv,"",""' if packed else "q,k,v"
    return (
        f"y, present_k, present_v = com.microsoft.GroupQueryAttention<num_heads={HEADS},"
        f"kv_num_heads={KV_HEADS},{attributes}>({given},past_k,past_v,seqlens,total{rest})"
    )


def group_query_feeds(*, packed: bool = True) -> dict[str, np.ndarray]:
    return {**random({**(ONE_TENSOR if packed else THREE_TENSORS), **PAST}), **LENGTHS}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "three tensors"])
@pytest.mark.parametrize(
    "attributes",
    [
        "scale=0.0",
        "scale=0.5",
        "softcap=1.5",
        "local_window_size=-1",
        "local_window_size=1",
        "local_window_size=3",
        "smooth_softmax=1",
        "smooth_softmax=1,softcap=0.5,local_window_size=2,scale=1.0",
    ],
)
def test_group_query_attention_without_rotation(attributes: str, packed: bool) -> None:
    assert_same(group_query(attributes, packed=packed), group_query_feeds(packed=packed), {})


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "three tensors"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("columns", [16, 8], ids=["whole head", "half of the head"])
def test_group_query_attention_that_rotates(packed: bool, interleaved: int, columns: int) -> None:
    body = group_query(f"do_rotary=1,rotary_interleaved={interleaved}", ",cos,sin", packed=packed)
    result = assert_same(body, group_query_feeds(packed=packed), tables(columns))
    positions = result.graph.inputs[-1]
    assert (positions.name, positions.dtype) == ("position_ids", ir.DataType.INT64)
    rotations = [node for node in result.graph if node.op_type == "RotaryEmbedding"]
    assert [node.inputs[3] for node in rotations] == [positions, positions]


def test_group_query_attention_with_learned_sinks() -> None:
    sink = {"sink": np.array([0.7, -1.0, 2.0, 0.0], "f")}
    body = group_query("softcap=2.0", ',"","","","",sink')
    assert_same(body, group_query_feeds(), sink)


def test_norms_of_q_and_k_inside_the_attention() -> None:
    """onnxruntime has no CPU kernel for them: float64 norms in front of its plain attention."""
    weights = {"wq": np.linspace(0.5, 1.5, D).astype("f"), "wk": np.linspace(2, 1, D).astype("f")}
    feeds = group_query_feeds(packed=False)
    attributes = "qk_norm_epsilon=0.25,k_norm_epsilon=0.5"
    body = group_query(attributes, ',"","","","","","","",wq,wk', packed=False)
    got = run(add_bodies(lowered(parse(body, feeds, weights))), feeds)
    normed = dict(feeds)
    for name, weight, epsilon in (("q", "wq", 0.25), ("k", "wk", 0.5)):
        heads = feeds[name].reshape(B, S, -1, D).astype(np.float64)
        root = np.sqrt((heads**2).mean(-1, keepdims=True) + epsilon)
        normed[name] = (heads / root * weights[weight]).reshape(feeds[name].shape).astype("f")
    want = run(parse(group_query("scale=0.0", packed=False), normed, {}), normed)
    np.testing.assert_allclose(got, want, atol=2e-6, rtol=0)


def test_values_of_a_lowered_attention_have_shapes_and_types() -> None:
    body = group_query("do_rotary=1,local_window_size=3,softcap=1.5,scale=0.5", ",cos,sin")
    result = lowered(parse(body, group_query_feeds(), tables(16)))
    for node in result.graph:
        for value in node.outputs:
            assert value.shape is not None and value.dtype == ir.DataType.FLOAT
            assert value.name
    (attention,) = [node for node in result.graph if node.op_type == "CausalAttention"]
    shapes = [str(value.shape) for value in attention.inputs if value is not None]
    assert shapes == ["[batch,4,tokens,32]", "[batch,2,tokens,32]", "[batch,2,tokens,32]"]
    values = {name: attribute.value for name, attribute in attention.attributes.items()}
    assert values == {"scale": 0.5, "softcap": 1.5, "window": 3}
    assert [value.name for value in result.graph.outputs] == ["y"]


ROTARY = "com.microsoft.RotaryEmbedding"


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("attributes", "columns"),
    [("", 16), (f"num_heads={HEADS},", 16), (f"num_heads={HEADS},rotary_embedding_dim=8,", 4)],
    ids=["heads from the table", "heads given", "half of the head"],
)
def test_rotary_embedding_of_joined_heads(interleaved: int, attributes: str, columns: int) -> None:
    feeds = {**random({"q": (B, S, HEADS * D)}), "positions": np.array([[3] * S, range(S)])}
    body = f"y = {ROTARY}<{attributes}interleaved={interleaved}>(q,positions,cos,sin)"
    assert_same(body, feeds, tables(columns))


def test_rotary_embedding_of_heads_that_stand_apart() -> None:
    feeds = {**random({"past_x": (B, HEADS, S, D)}), "positions": np.tile(np.arange(S), (B, 1))}
    body = f"y4 = {ROTARY}(past_x,positions,cos,sin) y = Identity(y4)"
    model = parse(body, feeds, tables(16))
    model.graph.output[0].type.tensor_type.shape.dim.add()
    result = ir.from_proto(model)
    lower(result)
    np.testing.assert_allclose(
        run(ir.to_proto(result), feeds), run(model, feeds), atol=2e-6, rtol=0
    )
    assert [node.op_type for node in result.graph] == ["RotaryEmbedding", "Identity"]


def test_an_offset_of_zero_means_the_tokens_own_positions() -> None:
    feeds = random({"q": (B, S, HEADS * D)})
    body = f"y = {ROTARY}(q,offset,cos,sin)"
    assert_same(body, feeds, {**tables(16), "offset": np.zeros(1, np.int64)})


MULTI = "com.microsoft.MultiHeadAttention"
FULL = dict.fromkeys(("q", "k", "v"), (B, S, HEADS * D))


@pytest.mark.parametrize(
    "attributes", ["unidirectional=1", "scale=0.5,unidirectional=1", "scale=0.5"]
)
def test_multi_head_attention(attributes: str) -> None:
    assert_same(f"y = {MULTI}<num_heads={HEADS},{attributes}>(q,k,v)", random(FULL), {})


def test_multi_head_attention_with_bias_and_mask() -> None:
    held = random({"bias": (3 * HEADS * D,), "mask": (B, 1, S, S)})
    assert_same(f'y = {MULTI}<num_heads={HEADS}>(q,k,v,bias,"",mask)', random(FULL), held)


def test_padding_of_a_causal_attention_is_left_aside() -> None:
    feeds = {**random(FULL), "padding": np.ones((B, S), np.int32)}
    body = f'y = {MULTI}<num_heads={HEADS},unidirectional=1>(q,k,v,"",padding)'
    result = assert_same(body, feeds, {})
    assert not next(value for value in result.graph.inputs if value.name == "padding").uses()


# What genai's builder writes for grouped heads: rotation, the cache, every KV head repeated.
REPEATED = f"""
  turned_q = {ROTARY}(q, position_ids, cos, sin)
  turned_k = {ROTARY}(k, position_ids, cos, sin)
  apart = Reshape(turned_k, by_kv_heads)
  heads_k = Transpose<perm = [0, 2, 1, 3]>(apart)
  present_k = Concat<axis = 2>(past_k, heads_k)
  alone = Unsqueeze(present_k, second)
  repeated = Expand(alone, groups)
  all_k = Reshape(repeated, together)
  tokens_k = Transpose<perm = [0, 2, 1, 3]>(all_k)
  joined_k = Reshape(tokens_k, by_width)
  y = {MULTI}<num_heads={HEADS}, unidirectional=1>(turned_q, joined_k, v)
"""


def test_repeated_heads_are_found_before_their_expansion() -> None:
    shapes = {"q": (B, S, HEADS * D), "k": (B, S, KV_HEADS * D), "v": (B, S, HEADS * D)}
    feeds = random({**shapes, "past_k": (B, KV_HEADS, 0, D)})
    feeds["position_ids"] = np.tile(np.arange(S), (B, 1))
    held = {
        "by_kv_heads": [0, 0, KV_HEADS, D],
        "second": [2],
        "groups": [1, 1, HEADS // KV_HEADS, 1, 1],
        "together": [0, HEADS, -1, D],
        "by_width": [0, 0, HEADS * D],
    }
    integers = {name: np.array(numbers, np.int64) for name, numbers in held.items()}
    model = onnx.shape_inference.infer_shapes(parse(REPEATED, feeds, {**tables(16), **integers}))
    result = lowered(model)
    got = run(add_bodies(result), feeds)
    np.testing.assert_allclose(got, run(model, feeds), atol=2e-6, rtol=0)
    (attention,) = [node for node in result.graph if node.op_type == "Attention"]
    steps, value = [], attention.inputs[1]
    while value is not None and (node := value.producer()) is not None:
        steps.append(node.op_type)
        value = node.inputs[0]
    assert steps == [
        "Reshape", "Expand", "Unsqueeze", "RotaryEmbedding", "Transpose", "Reshape"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "rest", "reason"),
    [
        ("causal=0", "", "has causal = 0: .*export it causal"),
        ("local_window_size=0", "", "local_window_size = 0: .*at least 1"),
        ("scale=1.0", ',"","","",bias', "attention_bias = bias: .*without it"),
        ("scale=1.0", ',"","","","","",bias', "k_scale = bias: .*--kv-cache-dtype"),
        ('k_quant_type="PER_TENSOR"', "", "k_quant_type = PER_TENSOR: .*--kv-cache-dtype"),
        ("do_rotary=1", "", "cos_cache = absent"),
        ("scale=1.0", ',"","","","","","","",bias', "k_norm_weight = absent"),
    ],
)
def test_a_group_query_attention_that_cannot_be_said(
    attributes: str, rest: str, reason: str
) -> None:
    held = {"bias": np.zeros(D, "f")}
    with pytest.raises(UserError, match=rf"GroupQueryAttention \(y\) .*{reason}"):
        lowered(parse(group_query(attributes, rest), group_query_feeds(), held))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"y = {MULTI}<num_heads=4>(q)", "query = packed q, k and v"),
        (f'y = {MULTI}<num_heads=4>(q,k,v,"",mask)', "key_padding_mask = mask"),
        (
            f'y = {MULTI}<num_heads=4>(q,k,v,"","","","","","",mask)',
            "cache_indirection = mask",
        ),
        (f"y = {MULTI}<num_heads=5>(q,k,v)", "does not divide into 5 heads"),
        (f"y = {ROTARY}<is_packed_batching=1>(q,mask,cos,sin)", "is_packed_batching = 1"),
        (f"y = {ROTARY}<scale=2.0>(q,mask,cos,sin)", "scale = 2.0"),
        (f"y = {ROTARY}<rotary_embedding_dim=4>(q,mask,cos,sin)", "num_heads = 0"),
        (f"y = {ROTARY}(q,offset,cos,sin)", r"position_ids = \[3\]"),
        (f"y = {ROTARY}(q,mask,k,v)", "cos_cache = k"),
    ],
)
def test_what_cannot_be_said_otherwise_is_refused(body: str, reason: str) -> None:
    feeds = {**random(FULL), "mask": np.ones((B, S), np.int64)}
    with pytest.raises(UserError, match=rf"\(y\) has .*{reason}"):
        lowered(parse(body, feeds, {**tables(16), "offset": np.array([3])}))


@pytest.mark.parametrize("name", ["Attention", "SparseAttention", "PagedAttention"])
def test_other_attentions_are_refused_by_name(name: str) -> None:
    body = f"y = com.microsoft.{name}<num_heads=4>(q,k,v)"
    with pytest.raises(UserError, match=rf"^{name} \(y\) of com\.microsoft .*export the model"):
        lowered(parse(body, random(FULL), {}))


def test_an_attention_in_a_branch_is_refused() -> None:
    branch = f"g1 () => (float[batch,tokens,W] z) {{ z = {MULTI}<num_heads=4>(q,k,v) }}"
    body = f"y = If(flag)<then_branch = {branch}, else_branch = {branch.replace('z', 'w')}>"
    with pytest.raises(UserError, match="stands in a branch of the graph"):
        lowered(parse(body, random(FULL), {"flag": np.array(True)}))


def test_what_onnxruntime_runs_stays() -> None:
    body = "n = SimplifiedLayerNormalization(q, w) y = com.microsoft.FastGelu(n)"
    result = lowered(parse(body, random(FULL), random({"w": (HEADS * D,)})))
    assert [node.op_type for node in result.graph] == ["SimplifiedLayerNormalization", "FastGelu"]


@pytest.mark.parametrize("attributes", ["is_causal=1", "scale=0.5,softcap=2.0"])
def test_standard_attention_of_joined_heads(attributes: str) -> None:
    body = f"y = Attention<q_num_heads={HEADS},kv_num_heads={KV_HEADS},{attributes}>(q,k,v)"
    result = assert_same(body, random(THREE_TENSORS), {})
    (attention,) = [node for node in result.graph if node.op_type == "Attention"]
    shapes = [str(value.shape) for value in attention.inputs if value is not None]
    assert shapes == ["[batch,4,tokens,32]", "[batch,2,tokens,32]", "[batch,2,tokens,32]"]


@pytest.mark.parametrize(("partial", "columns"), [("", 16), ("rotary_embedding_dim=8,", 4)])
def test_standard_rotation_of_joined_heads(partial: str, columns: int) -> None:
    feeds = {**random({"q": (B, S, HEADS * D)}), **OWN}
    body = f"y = RotaryEmbedding<{partial}num_heads={HEADS}>(q,cos,sin,position_ids)"
    result = assert_same(body, feeds, tables(columns))
    (rotation,) = [node for node in result.graph if node.op_type == "RotaryEmbedding"]
    assert str(rotation.outputs[0].shape) == "[batch,4,tokens,32]"
