"""After the rewrite: no old site is left and the interface is the plan's."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.core.manifest import TensorInfo
from ctx_export.core.plan import Plan, is_input
from ctx_export.ops.spec import DOMAIN, OPERATORS

# What a rotation or an attention is made of; none may survive outside the function bodies.
_FORBIDDEN = ("Attention", "RotaryEmbedding", "Sin", "Cos", "Softmax", "MultiHeadAttention")


class RewriteError(Exception):
    """A rewritten graph breaks its own contract: a bug of the passes, not an error of use."""


def count_sites(model: ir.Model) -> int:
    """Number of `ctx` nodes; every one must become a plugin layer of an engine."""
    return sum(node.domain == DOMAIN for node in model.graph)


def expected_sites(plan: Plan) -> int:
    """`ctx` nodes of a plan: per layer an attention and the rotations of its query, of its key
    unless that is stored unrotated, and of the query that meets the sinks; and the frequencies."""
    sink_queries = sum(cache.sink_position is not None for cache in plan.caches)
    if plan.length_table is None:
        return 3 * plan.spec.layers + sink_queries
    return 2 * plan.spec.layers + sink_queries + 1


def verify(model: ir.Model, plan: Plan) -> None:
    """Raise RewriteError unless `model` is what `plan` promised."""
    graph = model.graph
    left = [f"{n.op_type} ({n.outputs[0].name})" for n in graph if n.op_type in _FORBIDDEN]
    if left:
        raise RewriteError(f"old nodes are left after rewriting: {', '.join(left[:4])}")
    if count_sites(model) != expected_sites(plan):
        raise RewriteError(f"{count_sites(model)} ctx nodes, the plan has {expected_sites(plan)}")
    for node in graph:
        if node.domain == DOMAIN:
            _check_node(node)
    _check_names(graph.inputs, [t for t in plan.io if is_input(t)])
    _check_names(graph.outputs, [t for t in plan.io if not is_input(t)])


def _check_node(node: ir.Node) -> None:
    spec = OPERATORS[node.op_type]
    missing = set(spec.attributes) - set(node.attributes)
    if missing:
        raise RewriteError(f"{node.name} lacks attributes {sorted(missing)}")
    if any(value is None for value in node.inputs):
        raise RewriteError(f"{node.name} omits an input, which TensorRT's parser refuses")


def _check_names(values: object, expected: list[TensorInfo]) -> None:
    names = [value.name for value in values]  # type: ignore[attr-defined]
    if names != [tensor.name for tensor in expected]:
        raise RewriteError(f"graph interface {names} differs from the plan's")
