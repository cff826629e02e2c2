"""Standard Attention and RotaryEmbedding on [B,S,H·D] as the same operators on [B,H,S,D]."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.frontends.contrib_node import ContribNode, width
from ctx_export.frontends.insertion import Insertion

_ATTENTION = ("Q", "K", "V", "attn_mask", "past_key", "past_value")
_ROTARY = ("X", "cos_cache", "sin_cache", "position_ids")


def has_joined_heads(node: ir.Node) -> bool:
    """Whether a node is one of the two and its heads lie side by side in the last dimension."""
    if node.domain != "" or node.op_type not in ("Attention", "RotaryEmbedding"):
        return False
    x = node.inputs[0]
    if x is not None and x.shape is not None:
        return len(x.shape) == 3
    return bool(_counts(node)[0])


def lower_joined_heads(node: ir.Node, at: Insertion) -> ir.Value:
    """The node's result [B,S,H·D]."""
    if node.op_type == "Attention":
        return _lower_attention(node, at)
    question = ContribNode(node, _ROTARY)
    x = _apart(question, "X", question.integer("num_heads"), at)
    rest = [question.input(name) for name in _ROTARY[1:]]
    rotated = at.op(
        "RotaryEmbedding",
        [x, *(value for value in rest if value is not None)],
        x.shape,
        interleaved=question.integer("interleaved"),
        rotary_embedding_dim=question.integer("rotary_embedding_dim"),
    )
    return at.join_heads(rotated)


def _lower_attention(node: ir.Node, at: Insertion) -> ir.Value:
    question = ContribNode(node, _ATTENTION)
    for index, name in ((1, "present_key"), (2, "present_value"), (3, "qk_matmul_output")):
        question.refuse_output(index, name, "only y is kept; export the model without it")
    count, kv_count = _counts(node)
    heads = [
        _apart(question, name, number, at)
        for name, number in (("Q", count), ("K", kv_count), ("V", kv_count))
    ]
    mask = question.input("attn_mask")
    kept = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name not in ("q_num_heads", "kv_num_heads")
    }
    given = [*heads, *([mask] if mask is not None else [])]
    return at.join_heads(at.op("Attention", given, heads[0].shape, **kept))


def _counts(node: ir.Node) -> tuple[int, int]:
    names = ("q_num_heads", "kv_num_heads")
    if node.op_type == "RotaryEmbedding":
        names = ("num_heads", "num_heads")
    query, key = (int(node.attributes.get_int(name, 0) or 0) for name in names)
    return query, key


def _apart(question: ContribNode, name: str, heads: int, at: Insertion) -> ir.Value:
    value = question.required(name)
    hidden = width(value)
    if hidden is None or heads < 1 or hidden % heads:
        question.refuse(
            name, f"{value.name} of width {hidden}", f"it does not divide into {heads} heads"
        )
    return at.split_heads(value, heads, hidden // heads)
