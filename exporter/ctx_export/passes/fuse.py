"""Rotation moves into the attention: q, k and the q that meets the sinks are rotated where the
cache is written, and no ScaledRotaryEmbedding is left in front of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ctx_export.ops.attention import AttentionVariant
from ctx_export.ops.spec import DOMAIN, SCALED_ROTARY_EMBEDDING, SINK_WINDOW_ATTENTION, Rotation
from ctx_export.patterns.match import Miss, describe, producer, scalar

_LOG = logging.getLogger(__name__)
_TABLE = ("inv_freq", "multiplier")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatedAttention:
    """An attention whose q, and where it caches rotated ones k, come straight from a rotation."""

    node: ir.Node
    inputs: dict[str, ir.Value]  # by name, with the unrotated q and k and without sink_q
    pairing: dict[str, int]  # rotary_dim and interleaved
    rotation: Rotation
    sink_position: int  # 0: no second q


def fuse(graph: ir.Graph, variant: AttentionVariant) -> AttentionVariant:
    """Let the attentions of `graph` rotate, in place; returns the variant of their body.

    They share one body, so all of them are fused, or none where one cannot be. The rotations that
    nothing reads any more are left to the removal of unused nodes.
    """
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == SINK_WINDOW_ATTENTION.name]
    found = [match(node) for node in nodes]
    fusible = [site for site in found if isinstance(site, RotatedAttention)]
    if len(fusible) < len(found):
        _LOG.info("%s", next(site for site in found if isinstance(site, Miss)))
        return variant
    rotations = {site.rotation for site in fusible}
    if len(rotations) != 1:
        return variant
    given = {name for name in variant.optional if name != "sink_q"} | set(_TABLE)
    fused = replace(
        variant,
        optional=tuple(name for name in SINK_WINDOW_ATTENTION.optional if name in given),
        rotation=rotations.pop(),
        sink_position=any(site.sink_position for site in fusible),
    )
    for site in fusible:
        _rewrite(site, fused.optional)
    return fused


def match(node: ir.Node) -> RotatedAttention | Miss:
    """Match a SinkWindowAttention whose inputs it could rotate itself: all at seen + row, with one
    table, the q that meets the sinks at no more than one constant position."""
    inputs = _named_inputs(node)
    query = _rotation_of(inputs["q"])
    if query is None:
        return _miss(node, 0, f"q is no rotation, but {describe(inputs['q'])}")
    source, positions, *table = (value for value in query.inputs if value is not None)
    if not _are_rows_from(positions, inputs["seen"]):
        return _miss(node, 1, f"q is at {describe(positions)}, not at seen + 0…S-1")
    pairing = _pairing(query)
    if pairing["rotary_dim"] == 0:
        return _miss(node, 1, "q is rotated on no dims")
    rotation, key = _key_rotation(node, inputs, query)
    if key is None:
        return _miss(node, 2, f"k is not rotated as q is, but {describe(inputs['k'])}")
    sink_position = _sink_position(inputs, query)
    if sink_position is None:
        return _miss(
            node, 3, f"sink_q is no second rotation of q, but {describe(inputs['sink_q'])}"
        )
    inputs |= {"q": source, "k": key, **dict(zip(_TABLE, table, strict=True))}
    inputs.pop("sink_q", None)
    return RotatedAttention(
        node=node, inputs=inputs, pairing=pairing, rotation=rotation, sink_position=sink_position
    )


def _key_rotation(
    node: ir.Node, inputs: dict[str, ir.Value], query: ir.Node
) -> tuple[Rotation, ir.Value | None]:
    """How the keys are rotated, and k as it is then given; None if otherwise than q."""
    if "inv_freq" in inputs:
        same = _pairing(node) == _pairing(query)
        same = same and [inputs[name] for name in _TABLE] == list(query.inputs[2:])
        return Rotation.QUERY_AND_KEYS_ON_READ, inputs["k"] if same else None
    key = _rotation_of(inputs["k"])
    if key is None or key.inputs[1] is not query.inputs[1] or not _rotate_alike(key, query):
        return Rotation.ON_WRITE, None
    return Rotation.ON_WRITE, key.inputs[0]


def _sink_position(inputs: dict[str, ir.Value], query: ir.Node) -> int | None:
    """The last position of the q that meets the sinks, 0 if that is q itself, None if it is not
    q's source rotated by q's table."""
    given = inputs.get("sink_q", inputs["q"])
    if given is inputs["q"]:
        return 0
    sink = _rotation_of(given)
    if sink is None or sink.inputs[0] is not query.inputs[0] or not _rotate_alike(sink, query):
        return None
    least = producer(sink.inputs[1], "Min")
    if least is None or least.inputs[0] is not query.inputs[1] or len(least.inputs) != 2:
        return None
    return scalar(least.inputs[1]) or None  # as an attribute, 0 would mean no second q


def _rotation_of(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    found = node is not None and (node.domain, node.op_type) == (
        DOMAIN,
        SCALED_ROTARY_EMBEDDING.name,
    )
    return node if found else None


def _rotate_alike(one: ir.Node, other: ir.Node) -> bool:
    """Whether two rotations have the same table and pair the same dims."""
    return _pairing(one) == _pairing(other) and one.inputs[2:] == other.inputs[2:]


def _pairing(node: ir.Node) -> dict[str, int]:
    return {name: node.attributes[name].as_int() for name in ("rotary_dim", "interleaved")}


def _are_rows_from(positions: ir.Value | None, seen: ir.Value) -> bool:
    """Whether `positions` [B,S] are seen + 0…S-1."""
    total = producer(positions, "Add")
    if total is None:
        return False
    column, rows = producer(total.inputs[0], "Unsqueeze"), producer(total.inputs[1], "Range")
    if column is None or rows is None or column.inputs[0] is not seen:
        return False
    return (scalar(column.inputs[1]), scalar(rows.inputs[0]), scalar(rows.inputs[2])) == (1, 0, 1)


def _named_inputs(node: ir.Node) -> dict[str, ir.Value]:
    optional = node.attributes["optional_inputs"].as_string()
    names = (*SINK_WINDOW_ATTENTION.inputs, *(name for name in optional.split(",") if name))
    return {
        name: value for name, value in zip(names, node.inputs, strict=True) if value is not None
    }


def _rewrite(site: RotatedAttention, optional: Sequence[str]) -> None:
    """Give the attention the unrotated tensors and what it rotates them by."""
    node = site.node
    names = (*SINK_WINDOW_ATTENTION.inputs, *optional)
    node.resize_inputs(len(names))
    for index, name in enumerate(names):
        node.replace_input_with(index, site.inputs[name])
    numbers = {**site.pairing, "rotation": site.rotation, "sink_position": site.sink_position}
    for name, number in numbers.items():
        node.attributes.add(ir.AttrInt64(name, int(number)))
    node.attributes.add(ir.AttrString("optional_inputs", ",".join(optional)))


def _miss(node: ir.Node, depth: int, reason: str) -> Miss:
    return Miss(pattern="rotated attention", node=node.name or "", reason=reason, depth=depth)
