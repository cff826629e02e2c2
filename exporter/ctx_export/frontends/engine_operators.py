"""Standard operators in place of onnxruntime's own, for engines, whose parser knows no others.

In onnxruntime a model keeps its operators: they are faster there.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.frontends.contrib_node import DOMAIN, ContribNode
from ctx_export.frontends.insertion import Insertion, names_of
from ctx_export.frontends.packed_weights import lower_matmul_nbits

_SIMPLIFIED = ("input", "skip", "gamma", "bias")
_SKIP = ("input", "skip", "gamma", "beta", "bias")
_SKIP_EPSILON, _NORM_EPSILON = 1e-12, 1e-5  # onnxruntime's defaults
_QUICK_ALPHA = 1.702


def lower_for_engine(model: ir.Model) -> None:
    """Replace onnxruntime's own operators in `model` (opset 23) by standard ones, in place.

    Raises UserError with the operator's name where there is no exact replacement.
    """
    graph = model.graph
    taken = names_of(graph)
    for node in list(graph.all_nodes()):
        if is_foreign(node) and isinstance(node.graph, ir.Graph):
            at = Insertion(graph=node.graph, before=node, taken=taken)
            at.replace(_REWRITES.get(node.op_type, _refuse)(node, at))
    graph.opset_imports.pop(DOMAIN, None)


def is_foreign(node: ir.Node) -> bool:
    """Whether a node is one of onnxruntime's own operators."""
    return node.domain == DOMAIN or (node.domain, node.op_type) in _IN_STANDARD_DOMAIN


def without_standard_form(graph: ir.Graph) -> list[str]:
    """The operators of `graph` that keep an engine from being built, by name."""
    names = {node.op_type for node in graph.all_nodes() if is_foreign(node)}
    return sorted(names - set(_REWRITES))


def _refuse(node: ir.Node, at: Insertion) -> ir.Value:
    raise UserError(
        f"{node.op_type} ({node.outputs[0].name}) of com.microsoft has no exact form that an "
        "engine's parser takes; use --engine none, which onnxruntime runs, or export the model "
        "without it"
    )


def _root_mean_square(node: ir.Node, at: Insertion) -> ir.Value:
    contrib = ContribNode(node, ("input", "gamma"))
    contrib.refuse_output(1, "inv_std_var", "only training reads it; export for inference")
    return at.op(
        "RMSNormalization",
        list(node.inputs[:2]),
        node.outputs[0].shape,
        axis=contrib.integer("axis", -1),
        epsilon=contrib.number("epsilon", _NORM_EPSILON),
        stash_type=contrib.integer("stash_type", 1),
    )


def _skip_root_mean_square(node: ir.Node, at: Insertion) -> ir.Value:
    contrib = ContribNode(node, _SIMPLIFIED)
    total = _skipped(contrib, at)
    return at.op(
        "RMSNormalization",
        [total, contrib.required("gamma")],
        total.shape,
        axis=-1,
        epsilon=contrib.number("epsilon", _SKIP_EPSILON),
    )


def _skip_layer_normalization(node: ir.Node, at: Insertion) -> ir.Value:
    contrib = ContribNode(node, _SKIP)
    total = _skipped(contrib, at)
    beta = contrib.input("beta")
    return at.op(
        "LayerNormalization",
        [total, contrib.required("gamma"), *([beta] if beta is not None else [])],
        total.shape,
        axis=-1,
        epsilon=contrib.number("epsilon", _SKIP_EPSILON),
    )


def _skipped(contrib: ContribNode, at: Insertion) -> ir.Value:
    """input + skip + bias, which later layers read as well."""
    for index, name in ((1, "mean"), (2, "inv_std_var")):
        contrib.refuse_output(index, name, "only training reads it; export for inference")
    x, bias = contrib.required("input"), contrib.input("bias")
    total = at.op("Add", [x, contrib.required("skip")], x.shape)
    if bias is not None:
        total = at.op("Add", [total, bias], x.shape)
    outputs = contrib.node.outputs
    if len(outputs) > 3:
        ir.convenience.replace_all_uses_with(outputs[3], total, replace_graph_outputs=True)
    return total


def _quick_gelu(node: ir.Node, at: Insertion) -> ir.Value:
    x = ContribNode(node, ("X",)).required("X")
    assert x.dtype is not None
    alpha = node.attributes.get_float("alpha", _QUICK_ALPHA)
    factor = at.scalar(float(alpha if alpha is not None else _QUICK_ALPHA), x.dtype)
    gate = at.op("Sigmoid", [at.op("Mul", [x, factor], x.shape)], x.shape)
    return at.op("Mul", [x, gate], x.shape)


def _gelu(approximate: str) -> Callable[[ir.Node, Insertion], ir.Value]:
    def rewrite(node: ir.Node, at: Insertion) -> ir.Value:
        contrib = ContribNode(node, ("X", "bias"))
        x, bias = contrib.required("X"), contrib.input("bias")
        if bias is not None:
            x = at.op("Add", [x, bias], x.shape)
        return at.op("Gelu", [x], x.shape, approximate=approximate)

    return rewrite


_IN_STANDARD_DOMAIN = {("", "SimplifiedLayerNormalization")}
_REWRITES: dict[str, Callable[[ir.Node, Insertion], ir.Value]] = {
    "SkipSimplifiedLayerNormalization": _skip_root_mean_square,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SimplifiedLayerNormalization": _root_mean_square,
    "QuickGelu": _quick_gelu,
    "Gelu": _gelu("none"),
    "BiasGelu": _gelu("none"),
    "FastGelu": _gelu("tanh"),
    "MatMulNBits": lower_matmul_nbits,
}
