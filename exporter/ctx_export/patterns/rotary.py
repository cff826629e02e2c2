"""Rotary embedding as plain operators: x·cos + rotate_half(x)·sin, on all or the leading dims."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.match import Miss, describe, dimension, producer, scalar

_TABLE_STEPS = ("Unsqueeze", "Cast", "Mul", "Reshape", "Expand")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryMatch:
    """A rotated value: the tensor before rotation [B,H,S,D] and how it is rotated."""

    source: ir.Value
    rotary_dim: int
    interleaved: bool


def match_rotary(value: ir.Value) -> RotaryMatch | Miss:
    """Match `value` [B,H,S,D] as a half-split rotary embedding of some tensor."""
    whole = _match_rotation(value)
    if isinstance(whole, RotaryMatch):
        return whole
    joined = producer(value, "Concat")
    if joined is None or len(joined.inputs) != 2:
        return whole
    return _match_partial(joined)


def _match_partial(joined: ir.Node) -> RotaryMatch | Miss:
    """Concat(rotated leading dims, untouched tail) of one tensor: partial rotation."""
    rotated, tail = joined.inputs
    assert rotated is not None and tail is not None
    inner = _match_rotation(rotated)
    if isinstance(inner, Miss):
        return inner
    head_slice, tail_slice = producer(inner.source, "Slice"), producer(tail, "Slice")
    if head_slice is None or tail_slice is None:
        return _miss(joined, 4, "the rotated and the untouched part are not slices")
    source = head_slice.inputs[0]
    if source is None or source is not tail_slice.inputs[0]:
        return _miss(joined, 5, "the rotated and the untouched part come from different tensors")
    bounds = (
        scalar(head_slice.inputs[1]),
        scalar(head_slice.inputs[2]),
        scalar(tail_slice.inputs[1]),
    )
    if bounds != (0, inner.rotary_dim, inner.rotary_dim):
        return _miss(joined, 6, f"slice bounds {bounds} do not split at {inner.rotary_dim}")
    return RotaryMatch(source=source, rotary_dim=inner.rotary_dim, interleaved=False)


def _match_rotation(value: ir.Value) -> RotaryMatch | Miss:
    total = producer(value, "Add")
    if total is None:
        return _miss_at(value, 0, f"expected x·cos + rotate_half(x)·sin, found {describe(value)}")
    found: Miss = _miss(total, 1, "neither term is a product with a cosine")
    for straight, turned in (total.inputs, reversed(total.inputs)):
        attempt = _match_terms(total, straight, turned)
        if isinstance(attempt, RotaryMatch):
            return attempt
        if attempt.depth >= found.depth:
            found = attempt
    return found


def _match_terms(
    total: ir.Node, straight: ir.Value | None, turned: ir.Value | None
) -> RotaryMatch | Miss:
    cos_product, sin_product = producer(straight, "Mul"), producer(turned, "Mul")
    if cos_product is None or sin_product is None:
        return _miss(total, 1, "a term is not a product")
    source = _factor_beside(cos_product, "Cos")
    halves = _factor_beside(sin_product, "Sin")
    if source is None or halves is None:
        return _miss(total, 2, "no factor comes from Cos and Sin")
    return _match_halves(source, halves)


def _factor_beside(product: ir.Node, table_op: str) -> ir.Value | None:
    """The factor of `product` whose partner is made from a `table_op` node."""
    first, second = product.inputs
    if _comes_from(second, table_op):
        return first
    return second if _comes_from(first, table_op) else None


def _comes_from(value: ir.Value | None, table_op: str) -> bool:
    """Whether `value` is a reshaped, cast or scaled result of a `table_op` node."""
    for _ in range(8):
        node = value.producer() if value is not None else None
        if node is None:
            return False
        if node.op_type == table_op:
            return True
        if node.op_type not in _TABLE_STEPS:
            return False
        value = node.inputs[0]
    return False


def _match_halves(source: ir.Value, halves: ir.Value) -> RotaryMatch | Miss:
    """`halves` must be Concat(-x[half:], x[:half]) of `source`."""
    joined = producer(halves, "Concat")
    if joined is None or len(joined.inputs) != 2:
        return _miss_at(halves, 3, f"rotate_half is not a Concat of two, but {describe(halves)}")
    negated = producer(joined.inputs[0], "Neg")
    second = producer(negated.inputs[0], "Slice") if negated is not None else None
    first = producer(joined.inputs[1], "Slice")
    if second is None or first is None:
        return _miss(joined, 4, "rotate_half is not Concat(Neg(Slice), Slice)")
    if first.inputs[0] is not source or second.inputs[0] is not source:
        return _miss(joined, 5, "its halves are not taken from the tensor beside the cosine")
    size = dimension(source, -1)
    bounds = (scalar(first.inputs[1]), scalar(first.inputs[2]), scalar(second.inputs[1]))
    if size is None or size % 2 or bounds != (0, size // 2, size // 2):
        return _miss(joined, 6, f"halves {bounds} do not split a dimension of {size}")
    return RotaryMatch(source=source, rotary_dim=size, interleaved=False)


def _miss(node: ir.Node, depth: int, reason: str) -> Miss:
    return Miss(
        pattern="rotary embedding",
        node=f"{node.op_type} ({node.outputs[0].name})",
        reason=reason,
        depth=depth,
    )


def _miss_at(value: ir.Value, depth: int, reason: str) -> Miss:
    return Miss(pattern="rotary embedding", node=describe(value), reason=reason, depth=depth)
