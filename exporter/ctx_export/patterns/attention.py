"""An attention, as one operator or as plain ones: what it reads, what it gives and its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.eager_attention import is_attention_softmax, match_eager
from ctx_export.patterns.graph_view import GraphView
from ctx_export.patterns.match import Miss, describe, dimension

# The attention of another tool's operator that has a window or learned sinks: see
# `frontends.contrib_operators`.
SOURCE_DOMAIN = "ctx.source"
CAUSAL_ATTENTION = "CausalAttention"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMatch:
    """q, k and v as the attention reads them: rotated, with cached tokens, repeated over grouped
    heads; y [B,Hq,S,D] the result; head_sink, Hq numbers of any rank, a learned logit per head.
    `window`: of an operator that states one itself, else None."""

    node: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    y: ir.Value
    scale: float
    softcap: float
    head_sink: ir.Value | None = None
    window: int | None = None


def is_attention(node: ir.Node) -> bool:
    """Whether a node is an attention, or the softmax of one."""
    if (node.domain, node.op_type) in (("", "Attention"), (SOURCE_DOMAIN, CAUSAL_ATTENTION)):
        return True
    return is_attention_softmax(node)


def match_attention(view: GraphView, node: ir.Node) -> AttentionMatch | Miss:
    """Match a standard `Attention` (opset 23 or later) of the four-dimensional form, the Softmax
    of an attention of plain operators, or a `CausalAttention`."""
    if node.op_type == "Softmax":
        return _of_plain_operators(view, node)
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None
    if q.shape is None or len(q.shape) != 4:
        return _miss(node, f"its query has shape {q.shape}: [batch, head, token, dim] is needed")
    head_dim = dimension(q, 3)
    if head_dim is None:
        return _miss(node, "its head dimension is not static")
    own = node.domain == SOURCE_DOMAIN
    scale = node.attributes.get_float("scale", None)
    return AttentionMatch(
        node=node,
        q=q,
        k=k,
        v=v,
        y=node.outputs[0],
        scale=1.0 / math.sqrt(head_dim) if scale is None else float(scale),
        softcap=float(node.attributes.get_float("softcap", 0.0) or 0.0),
        head_sink=node.inputs[3] if own and len(node.inputs) > 3 else None,
        window=int(node.attributes.get_int("window", 0) or 0) if own else None,
    )


def _of_plain_operators(view: GraphView, softmax: ir.Node) -> AttentionMatch | Miss:
    found = match_eager(view, softmax)
    if isinstance(found, Miss):
        return found
    return AttentionMatch(
        node=softmax,
        q=found.q,
        k=found.k,
        v=found.v,
        y=found.y,
        scale=found.scale,
        softcap=found.softcap,
        head_sink=found.head_sink,
    )


def _miss(node: ir.Node, reason: str) -> Miss:
    return Miss(
        pattern="attention",
        node=f"{node.op_type} ({describe(node.outputs[0])})",
        reason=reason,
        depth=0,
    )
