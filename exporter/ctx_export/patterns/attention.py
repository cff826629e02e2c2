"""A standard Attention node, or an attention of plain operators, with its key-value heads before
their expansion to query heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.eager_attention import is_attention_softmax, match_eager
from ctx_export.patterns.match import Miss, dimension, producer


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMatch:
    """q [B,Hq,S,D]; k and v [B,Hkv,S,D] before grouped heads are expanded; y the node's output;
    head_sink [Hq] a learned logit per head. `key_transposed`: k is [B,S,Hkv,D]."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    y: ir.Value
    scale: float
    softcap: float
    head_sink: ir.Value | None = None
    key_transposed: bool = False


def is_attention(node: ir.Node) -> bool:
    """Whether a node is an attention, or the softmax of one."""
    if node.domain == "" and node.op_type == "Attention":
        return True
    return is_attention_softmax(node)


def match_attention(node: ir.Node) -> AttentionMatch | Miss:
    """Match a standard `Attention` node (opset 23 or later) of the four-dimensional form, or the
    Softmax of an attention of plain operators."""
    if node.op_type == "Softmax":
        return _of_plain_operators(node)
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None
    if q.shape is None or len(q.shape) != 4:
        return _miss(node, f"its query has shape {q.shape}: [batch, head, token, dim] is needed")
    if len(node.inputs) > 4 and any(value is not None for value in node.inputs[4:6]):
        return _miss(node, "it already has a key-value cache")
    head_dim = dimension(q, 3)
    if head_dim is None:
        return _miss(node, "its head dimension is not static")
    scale = node.attributes.get_float("scale", 1.0 / math.sqrt(head_dim))
    return AttentionMatch(
        q=q,
        k=before_expansion(k),
        v=before_expansion(v),
        y=node.outputs[0],
        scale=float(scale if scale is not None else 1.0 / math.sqrt(head_dim)),
        softcap=float(node.attributes.get_float("softcap", 0.0) or 0.0),
    )


def _of_plain_operators(softmax: ir.Node) -> AttentionMatch | Miss:
    found = match_eager(softmax)
    if isinstance(found, Miss):
        return found
    return AttentionMatch(
        q=found.q,
        k=before_expansion(found.k),
        v=before_expansion(found.v),
        y=found.y,
        scale=found.scale,
        softcap=found.softcap,
        head_sink=found.head_sink,
        key_transposed=found.key_transposed,
    )


def before_expansion(value: ir.Value) -> ir.Value:
    """The value that Unsqueeze → Expand → Reshape repeats over grouped heads, else `value`."""
    reshape = producer(value, "Reshape")
    expand = producer(reshape.inputs[0], "Expand") if reshape is not None else None
    unsqueeze = producer(expand.inputs[0], "Unsqueeze") if expand is not None else None
    source = unsqueeze.inputs[0] if unsqueeze is not None else None
    return source if source is not None else value


def _miss(node: ir.Node, reason: str) -> Miss:
    return Miss(
        pattern="attention",
        node=f"{node.op_type} ({node.outputs[0].name})",
        reason=reason,
        depth=0,
    )
