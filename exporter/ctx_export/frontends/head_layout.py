"""Cancels what turns heads to the inside and back: Transpose → Reshape → Reshape → Transpose."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.frontends.insertion import HEADS_FIRST
from ctx_export.patterns.match import constant, producer


def cancel_layouts(graph: ir.Graph) -> None:
    """Let readers of [B,H,S,D] → [B,S,H·D] → [B,H,S,D] read the first tensor, in place."""
    for node in graph:
        if not _turns_heads(node):
            continue
        apart = producer(node.inputs[0], "Reshape")
        joined = producer(apart.inputs[0], "Reshape") if apart is not None else None
        turned = producer(joined.inputs[0], "Transpose") if joined is not None else None
        if apart is None or joined is None or turned is None or not _turns_heads(turned):
            continue
        if _is_undone(joined, apart):
            source = turned.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], source)


def _turns_heads(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Transpose") or "perm" not in node.attributes:
        return False
    return list(node.attributes["perm"].as_ints()) == HEADS_FIRST


def _is_undone(joined: ir.Node, apart: ir.Node) -> bool:
    """Whether [B,S,H,D] → [B,S,H·D] → [B,S,H',D'] ends with the heads it began with."""
    before = joined.inputs[0]
    if before is None or before.shape is None or len(before.shape) != 4:
        return False
    heads, head_dim = before.shape[2:]
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return False
    return _heads_of(apart, heads * head_dim) == (heads, head_dim) and all(
        map(_keeps_rows, (joined, apart))
    )


def _heads_of(apart: ir.Node, width: int) -> tuple[int, int] | None:
    """H and D that a Reshape of [B,S,H·D] makes, from its result's shape or its target."""
    shape, target = apart.outputs[0].shape, constant(apart.inputs[1])
    if target is not None and target.size == 4 and target[2:].all():
        heads, head_dim = (int(size) for size in target[2:])
        heads = width // head_dim if heads == -1 else heads
        return heads, width // heads if head_dim == -1 else head_dim
    if shape is None or len(shape) != 4:
        return None
    known = [size for size in shape[2:] if isinstance(size, int)]
    return (known[0], known[1]) if len(known) == 2 else None


def _keeps_rows(reshape: ir.Node) -> bool:
    """Whether a Reshape leaves batch and tokens as they are."""
    target = constant(reshape.inputs[1])
    if target is not None and not reshape.attributes.get_int("allowzero", 0):
        return target.size > 2 and not target[:2].any()
    value, result = reshape.inputs[0], reshape.outputs[0]
    if value is None or value.shape is None or result.shape is None:
        return False
    known = all(isinstance(size, int) or size.value is not None for size in value.shape[:2])
    return known and list(value.shape[:2]) == list(result.shape[:2])
