"""Rotary embedding as plain operators: x·cos + rotate(x)·sin, on all or the leading dims.

Pairs are halves (i, i + d/2) or neighbours (2i, 2i+1). Some decoders turn [B,S,H,D] and transpose
afterwards, some turn each half by itself and join them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from ctx_export.patterns.match import Miss, describe, dimension, producer, scalar
from ctx_export.patterns.rotary_table import is_table

HEADS_FIRST = [0, 2, 1, 3]  # [B,S,H,D] to [B,H,S,D]


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryMatch:
    """A rotated value: the tensor before rotation [B,H,S,D] and how it is rotated.

    `transposed`: the source is [B,S,H,D]. A `rotary_dim` of 0: it is not rotated at all.
    """

    source: ir.Value
    rotary_dim: int
    interleaved: bool
    transposed: bool = False


def match_rotary(value: ir.Value) -> RotaryMatch | Miss:
    """Match `value` [B,H,S,D] as a rotary embedding of some tensor."""
    turned = _match_any(value)
    transpose = producer(value, "Transpose")
    if isinstance(turned, RotaryMatch) or transpose is None:
        return turned
    inner = transpose.inputs[0]
    if inner is None or list(transpose.attributes["perm"].as_ints()) != HEADS_FIRST:
        return turned
    before = _match_any(inner)
    if isinstance(before, RotaryMatch):
        return replace(before, transposed=True)
    return before if before.depth > turned.depth else turned


def _match_any(value: ir.Value) -> RotaryMatch | Miss:
    whole = _match_rotation(value)
    if isinstance(whole, RotaryMatch):
        return whole
    joined = producer(value, "Concat")
    if joined is None or len(joined.inputs) != 2:
        return whole
    attempts = (_match_joined_halves(joined), _match_partial(joined))
    for attempt in attempts:
        if isinstance(attempt, RotaryMatch):
            return attempt
    return max(attempts, key=lambda miss: miss.depth)  # type: ignore[union-attr]


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
    return replace(inner, source=source)


def _match_joined_halves(joined: ir.Node) -> RotaryMatch | Miss:
    """Concat(a·cos - b·sin, b·cos + a·sin) of the halves a, b of one tensor."""
    first, second = producer(joined.inputs[0], "Sub"), producer(joined.inputs[1], "Add")
    if first is None or second is None:
        return _miss(joined, 1, "it does not join a·cos - b·sin with b·cos + a·sin")
    a, b = _factors(first, "Cos", 0), _factors(first, "Sin", 1)
    terms = {_factors(second, "Cos", 0), _factors(second, "Cos", 1)}
    turned = {_factors(second, "Sin", 0), _factors(second, "Sin", 1)}
    if a is None or b is None or b not in terms or a not in turned:
        return _miss(joined, 2, "its two halves are not turned by one cosine and one sine")
    split = producer(a, "Split")
    if split is None or split is not producer(b, "Split") or list(split.outputs) != [a, b]:
        return _miss(joined, 3, "what is turned are not the two halves of one tensor")
    source = split.inputs[0]
    size = dimension(source, -1) if source is not None else None
    if source is None or size is None or dimension(a, -1) != size / 2:
        return _miss(joined, 4, f"{describe(source)} is not split into halves")
    return RotaryMatch(source=source, rotary_dim=size, interleaved=False)


def _factors(total: ir.Node, table_op: str, term: int) -> ir.Value | None:
    """What a term of `total` multiplies by the table of `table_op`."""
    product = producer(total.inputs[term], "Mul")
    return None if product is None else _factor_beside(product, table_op)


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
    rotated = _factor_beside(sin_product, "Sin")
    if source is None or rotated is None:
        return _miss(total, 2, "no factor comes from Cos and Sin")
    if producer(rotated, "Reshape") is not None:
        return _match_neighbours(source, rotated)
    return _match_halves(source, rotated)


def _factor_beside(product: ir.Node, table_op: str) -> ir.Value | None:
    """The factor of `product` whose partner is made from a `table_op` node."""
    first, second = product.inputs
    if is_table(second, table_op):
        return first
    return second if is_table(first, table_op) else None


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


def _match_neighbours(source: ir.Value, pairs: ir.Value) -> RotaryMatch | Miss:
    """`pairs` must be Reshape(Concat(-x[1::2], x[0::2])) of `source`, joined on an axis after the
    last."""
    reshape = producer(pairs, "Reshape")
    assert reshape is not None
    joined = producer(reshape.inputs[0], "Concat")
    if joined is None or len(joined.inputs) != 2:
        return _miss(reshape, 3, "it does not join two columns")
    columns = [producer(column, "Unsqueeze") for column in joined.inputs]
    negated = producer(columns[0].inputs[0], "Neg") if columns[0] is not None else None
    odd = producer(negated.inputs[0], "Slice") if negated is not None else None
    even = producer(columns[1].inputs[0], "Slice") if columns[1] is not None else None
    if odd is None or even is None:
        return _miss(joined, 4, "its columns are not Neg(Slice) and Slice")
    if even.inputs[0] is not source or odd.inputs[0] is not source:
        return _miss(joined, 5, "its columns are not taken from the tensor beside the cosine")
    size = dimension(source, -1)
    steps = tuple(scalar(node.inputs[index]) for node in (even, odd) for index in (1, 4))
    axis = scalar(columns[0].inputs[1]) if columns[0] is not None else None
    if size is None or size % 2 or steps != (0, 2, 1, 2) or axis not in (-1, 4):
        return _miss(joined, 6, f"starts and steps {steps} do not pair the {size} dims")
    return RotaryMatch(source=source, rotary_dim=size, interleaved=True)


def _miss(node: ir.Node, depth: int, reason: str) -> Miss:
    return Miss(
        pattern="rotary embedding",
        node=f"{node.op_type} ({node.outputs[0].name})",
        reason=reason,
        depth=depth,
    )


def _miss_at(value: ir.Value, depth: int, reason: str) -> Miss:
    return Miss(pattern="rotary embedding", node=describe(value), reason=reason, depth=depth)
