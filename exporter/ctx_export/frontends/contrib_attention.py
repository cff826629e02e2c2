"""com.microsoft's GroupQueryAttention and MultiHeadAttention as canonical attention nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ctx_export.frontends.contrib_node import ContribNode, width
from ctx_export.frontends.contrib_rotary import Rotation, cache_columns, own_positions
from ctx_export.frontends.insertion import Dimension, Insertion
from ctx_export.patterns.match import dimension

SOURCE_DOMAIN = "ctx.source"
CAUSAL_ATTENTION = "CausalAttention"

GROUP_QUERY_INPUTS = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale",
    "q_norm_weight", "k_norm_weight", "query_seqlens",
)  # fmt: skip
MULTI_HEAD_INPUTS = (
    "query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key",
    "past_value", "past_sequence_length", "cache_indirection",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Query, key and value [B,H,S,D] of one attention."""

    query: ir.Value
    key: ir.Value
    value: ir.Value


def lower_group_query_attention(node: ir.Node, at: Insertion) -> ir.Value:
    """The attention's result [B,S,Hq·D] by a `ctx.source::CausalAttention`.

    Lengths and past of the cache are left aside: what is attended to are the call's own tokens.
    """
    contrib = ContribNode(node, GROUP_QUERY_INPUTS)
    _check_group_query(contrib)
    heads = _normed(contrib, _split(contrib, at), at)
    if contrib.integer("do_rotary"):
        rotation = Rotation(
            positions=contrib.input("position_ids") or own_positions(at.graph),
            cos=contrib.required("cos_cache"),
            sin=contrib.required("sin_cache"),
            columns=cache_columns(contrib),
            interleaved=contrib.integer("rotary_interleaved"),
        )
        heads = Heads(
            query=rotation.apply(heads.query, at),
            key=rotation.apply(heads.key, at),
            value=heads.value,
        )
    sink = _head_sink(contrib, heads.query, at)
    given = [heads.query, heads.key, heads.value, *([sink] if sink is not None else [])]
    result = at.op(
        CAUSAL_ATTENTION,
        given,
        heads.query.shape,
        domain=SOURCE_DOMAIN,
        scale=_scale(contrib, heads.query),
        softcap=contrib.number("softcap"),
        window=max(contrib.integer("local_window_size", -1), 0),
    )
    return at.join_heads(result)


def lower_multi_head_attention(node: ir.Node, at: Insertion) -> ir.Value:
    """The attention's result [B,S,H·D] by a standard Attention on [B,H,S,D]."""
    contrib = ContribNode(node, MULTI_HEAD_INPUTS)
    _check_multi_head(contrib)
    heads = _biased(contrib, at)
    mask = contrib.input("attention_bias")
    result = at.op(
        "Attention",
        [heads.query, heads.key, heads.value, *([mask] if mask is not None else [])],
        heads.query.shape,
        scale=_scale(contrib, heads.query),
        is_causal=contrib.integer("unidirectional"),
    )
    return at.join_heads(result)


def _check_group_query(contrib: ContribNode) -> None:
    """Refuse what changes the result and cannot be said by a CausalAttention."""
    if contrib.integer("causal", 1) != 1:
        contrib.refuse("causal", 0, "a decoder's tokens see no later ones; export it causal")
    window = contrib.integer("local_window_size", -1)
    if window < -1 or window == 0:
        contrib.refuse("local_window_size", window, "it must be -1 (none) or at least 1")
    contrib.refuse_input(
        "attention_bias", "a bias of the scores cannot be kept; export the model without it"
    )
    for scale in ("k_scale", "v_scale"):
        contrib.refuse_input(
            scale, "its cache is quantised; export it unquantised and choose --kv-cache-dtype"
        )
    for kind in ("k_quant_type", "v_quant_type"):
        value = contrib.node.attributes.get_string(kind, "NONE")
        if value != "NONE":
            contrib.refuse(
                kind,
                value,
                "export it with a cache that is not quantised; choose --kv-cache-dtype",
            )
    contrib.refuse_output(3, "output_qk", "scores are not kept; export the model without them")


def _check_multi_head(contrib: ContribNode) -> None:
    """Refuse what changes the result and cannot be said by a standard Attention."""
    if contrib.input("key") is None or contrib.input("value") is None:
        contrib.refuse("query", "packed q, k and v", "export them as three tensors")
    contrib.refuse_input("cache_indirection", "beams share a cache; export without beam search")
    contrib.refuse_output(3, "qk", "scores are not kept; export the model without them")
    mask = contrib.input("key_padding_mask")
    if mask is not None and not (_is_padding(mask) and _is_masked_otherwise(contrib)):
        contrib.refuse(
            "key_padding_mask",
            mask.name,
            "it is not merely the padding of a causal model; export the mask as attention_bias",
        )


def _is_padding(mask: ir.Value) -> bool:
    """Whether `mask` tells nothing but which tokens are padding: a graph input, perhaps cast."""
    node = mask.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        mask = node.inputs[0]
        node = mask.producer()
    return mask.is_graph_input() and mask.shape is not None and len(mask.shape) < 3


def _is_masked_otherwise(contrib: ContribNode) -> bool:
    return bool(contrib.integer("unidirectional")) or contrib.input("attention_bias") is not None


def _split(contrib: ContribNode, at: Insertion) -> Heads:
    """q, k and v of a GroupQueryAttention, from one tensor or from three."""
    query, key, value = (contrib.input(name) for name in GROUP_QUERY_INPUTS[:3])
    count, kv_count = contrib.integer("num_heads"), contrib.integer("kv_num_heads")
    assert query is not None
    if (key is None) != (value is None):
        contrib.refuse("key, value", "one of two", "export both, or both packed into query")
    if key is not None and value is not None:
        return Heads(
            query=_heads_first(contrib, query, count, at),
            key=_heads_first(contrib, key, kv_count, at),
            value=_heads_first(contrib, value, kv_count, at),
        )
    together = _heads_first(contrib, query, count + 2 * kv_count, at)
    assert together.shape is not None
    batch, _, tokens, head_dim = together.shape
    parts = [count, kv_count, kv_count]
    shapes: list[list[Dimension]] = [[batch, part, tokens, head_dim] for part in parts]
    q, k, v = at.ops("Split", [together, at.integers(parts)], shapes, axis=1)
    return Heads(query=q, key=k, value=v)


def _heads_first(contrib: ContribNode, value: ir.Value, heads: int, at: Insertion) -> ir.Value:
    """[B,S,H·D] as [B,H,S,D]; what has four dimensions is there already."""
    if value.shape is not None and len(value.shape) == 4:
        return value
    if value.shape is not None and len(value.shape) != 3:
        contrib.refuse("input", f"{value.name} {value.shape}", "[B,S,H·D] is needed; unpack it")
    hidden = width(value)
    if hidden is None or heads < 1 or hidden % heads:
        contrib.refuse(
            "input", f"{value.name} of width {hidden}", f"it does not divide into {heads} heads"
        )
    return at.split_heads(value, heads, hidden // heads)


def _normed(contrib: ContribNode, heads: Heads, at: Insertion) -> Heads:
    """q and k under the root mean square norms that newer nodes carry."""
    weights = {name: contrib.input(f"{name}_norm_weight") for name in ("q", "k")}
    if not any(weights.values()):
        return heads
    shared = contrib.number("qk_norm_epsilon", 1e-6)
    normed = []
    for name, value in (("q", heads.query), ("k", heads.key)):
        weight = weights[name]
        if weight is None:
            contrib.refuse(f"{name}_norm_weight", "absent", "export the norms of both q and k")
        epsilon = contrib.number(f"{name}_norm_epsilon", shared)
        normed.append(
            at.op("RMSNormalization", [value, weight], value.shape, axis=-1, epsilon=epsilon)
        )
    return Heads(query=normed[0], key=normed[1], value=heads.value)


def _head_sink(contrib: ContribNode, query: ir.Value, at: Insertion) -> ir.Value | None:
    """The logit per head that joins the softmax; smooth_softmax alone means zeros."""
    sink = contrib.input("head_sink")
    if sink is not None or contrib.integer("smooth_softmax") != 1:
        return sink
    assert query.dtype is not None
    zeros = np.zeros(contrib.integer("num_heads"), query.dtype.numpy())
    return at.constant(zeros, f"head_sink.zeros.{zeros.size}")


def _scale(contrib: ContribNode, query: ir.Value) -> float:
    """The node's own scale, 1/√D where it has none or 0."""
    head_dim = dimension(query, 3)
    assert head_dim is not None
    return contrib.number("scale") or 1.0 / math.sqrt(head_dim)


def _biased(contrib: ContribNode, at: Insertion) -> Heads:
    """q, k and v of a MultiHeadAttention, each plus its part of the node's bias [3·H·D]."""
    values = {name: contrib.required(name) for name in MULTI_HEAD_INPUTS[:3]}
    bias = contrib.input("bias")
    if bias is not None:
        widths = [_joined_width(value) for value in values.values()]
        if not all(widths):
            contrib.refuse("bias", bias.name, "q, k and v need static widths; add it before")
        parts = at.ops("Split", [bias, at.integers(widths)], [[w] for w in widths], axis=0)
        for (name, value), part in zip(list(values.items()), parts, strict=True):
            values[name] = at.op("Add", [value, part], value.shape)
    count = contrib.integer("num_heads")
    split = {name: _heads_first(contrib, value, count, at) for name, value in values.items()}
    return Heads(**split)


def _joined_width(value: ir.Value) -> int:
    """H·D of a value [B,S,H·D], 0 where that is unknown or the heads stand apart."""
    apart = value.shape is not None and len(value.shape) != 3
    return 0 if apart else width(value) or 0
