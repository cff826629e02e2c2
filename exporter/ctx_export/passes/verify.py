"""After the rewrite: no old site is left and the interface is the plan's."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from ctx_export.core.manifest import CacheInfo, TensorInfo
from ctx_export.core.plan import Plan, is_input
from ctx_export.ops.spec import DOMAIN, OPERATORS, SINK_WINDOW_ATTENTION, Layout, Rotation
from ctx_export.passes.operators import ATTENTION_NAMES, attention_operator, rule_attributes
from ctx_export.patterns.eager_attention import is_attention_softmax

# What a rotation or an attention is made of; none may survive outside the function bodies.
_FORBIDDEN = ("Attention", "RotaryEmbedding", "Sin", "Cos", "MultiHeadAttention")


class RewriteError(Exception):
    """A rewritten graph breaks its own contract: a bug of the passes, not an error of use."""


def expected_sites(plan: Plan, *, fused: bool) -> dict[str, int]:
    """`ctx` nodes of a plan by operator: an attention a layer, the frequencies where they follow
    the length, and unless the sink-window attentions rotate themselves the rotations of their
    queries, of their keys unless those are stored unrotated, and of the query that meets the
    sinks."""
    attentions = Counter(attention_operator(cache).name for cache in plan.caches)
    sink_queries = sum(cache.sink_position is not None for cache in plan.caches)
    turned = 1 if plan.length_table is not None else 2
    apart = turned * attentions[SINK_WINDOW_ATTENTION.name] + sink_queries
    expected = {
        **attentions,
        "RotaryFrequencies": int(plan.length_table is not None),
        "ScaledRotaryEmbedding": 0 if fused else apart,
    }
    return {name: count for name, count in expected.items() if count}


def verify(model: ir.Model, plan: Plan) -> None:
    """Raise RewriteError unless `model` is what `plan` promised."""
    graph = model.graph
    left = [
        f"{node.op_type} ({node.outputs[0].name})"
        for node in graph
        if node.op_type in _FORBIDDEN or is_attention_softmax(node)
    ]
    if left:
        raise RewriteError(f"old nodes are left after rewriting: {', '.join(left[:4])}")
    nodes = [node for node in graph if node.domain == DOMAIN]
    for node in nodes:
        _check_node(node)
    attentions = [node for node in nodes if node.op_type in ATTENTION_NAMES]
    fused = any(node.attributes.get_int("rotation", 0) for node in attentions)
    found, expected = Counter(n.op_type for n in nodes), expected_sites(plan, fused=fused)
    if found != expected:
        raise RewriteError(f"ctx nodes are {dict(found)}, the plan has {expected}")
    for layer, node in enumerate(attentions):
        _check_layout(node)
        _check_rule(node, plan.caches[layer])
        if fused and node.op_type == SINK_WINDOW_ATTENTION.name:
            _check_rotation(node, plan, layer)
    bodies = {function.name for function in model.functions.values()}
    if bodies != set(found):
        raise RewriteError(f"function bodies are {sorted(bodies)} for ctx nodes {dict(found)}")
    _check_names(graph.inputs, [t for t in plan.io if is_input(t)])
    _check_names(graph.outputs, [t for t in plan.io if not is_input(t)])


def _check_node(node: ir.Node) -> None:
    spec = OPERATORS[node.op_type]
    missing = set(spec.attributes) - set(node.attributes)
    if missing:
        raise RewriteError(f"{node.name} lacks attributes {sorted(missing)}")
    if any(value is None for value in node.inputs):
        raise RewriteError(f"{node.name} omits an input, which TensorRT's parser refuses")


def _check_layout(node: ir.Node) -> None:
    """q, k and v are what the body takes apart: of four axes, or of three, or one value."""
    layout, given = Layout(node.attributes["layout"].as_int()), node.inputs[:3]
    axes = {len(value.shape) for value in given if value is not None and value.shape is not None}
    is_one = all(value is given[0] for value in given)
    expected = 4 if layout == Layout.HEAD_MAJOR else 3
    if not axes <= {expected} or is_one != (layout == Layout.PACKED):
        told = "as one value" if is_one else "as three values"
        raise RewriteError(
            f"{node.name} has layout {layout} and takes q, k and v {told} of {sorted(axes)} axes"
        )


def _check_rule(node: ir.Node, cache: CacheInfo) -> None:
    """An attention's numbers are those of the layer's cache."""
    planned = (attention_operator(cache).name, rule_attributes(cache))
    found = (node.op_type, {name: node.attributes[name].as_int() for name in planned[1]})
    if found != planned:
        raise RewriteError(f"{node.name} is {found}, the plan has {planned}")


def _check_rotation(node: ir.Node, plan: Plan, layer: int) -> None:
    """An attention that rotates does so as the layer's cache is planned."""
    unrotated = plan.length_table is not None
    rotation = Rotation.QUERY_AND_KEYS_ON_READ if unrotated else Rotation.ON_WRITE
    planned = (rotation, plan.caches[layer].sink_position or 0)
    found = tuple(node.attributes[name].as_int() for name in ("rotation", "sink_position"))
    if found != planned:
        raise RewriteError(f"{node.name} has rotation and sink position {found}, not {planned}")


def _check_names(values: object, expected: list[TensorInfo]) -> None:
    names = [value.name for value in values]  # type: ignore[attr-defined]
    if names != [tensor.name for tensor in expected]:
        raise RewriteError(f"graph interface {names} differs from the plan's")
