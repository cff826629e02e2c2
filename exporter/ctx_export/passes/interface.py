"""The package's inputs and outputs in place of the old graph's, and what that leaves unused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan, is_input
from ctx_export.passes.sizes import read_sizes_of_tokens
from ctx_export.patterns.match import constant, describe, producer

# Operators that may stand between the vocabulary projection and the logits: they work row by row.
_AFTER_PROJECTION = (
    *("Cast", "Mul", "Div", "Tanh", "Add", "Sub", "Identity", "Clip"),
    *("QuantizeLinear", "DequantizeLinear"),
)
_PROJECTIONS = {
    "": ("MatMul", "MatMulInteger", "QLinearMatMul"),
    "com.microsoft": ("MatMulNBits", "MatMulBnb4", "FusedMatMul"),
}
_CHOOSING = ("Slice", "Gather", "GatherND", "GatherElements")
_END = np.iinfo(np.int32).max
_DIM_AXES = (2, -1)  # of [batch, tokens, dim]


def project_chosen_rows(graph: ir.Graph, rows: ir.Value) -> None:
    """Gather the rows named by `logit_rows` [B,R] before the vocabulary projection.

    Raises UserError where the logits are made otherwise than by one projection, or of some tokens
    only.
    """
    value, reshape = graph.outputs[0], None
    while True:
        node = value.producer()
        if node is None:
            raise UserError(f"no vocabulary projection before {describe(graph.outputs[0])}")
        if node.op_type in _PROJECTIONS.get(node.domain, ()):
            break
        if node.domain == "" and node.op_type == "Gemm" and reshape is not None:
            break
        if node.domain == "" and node.op_type == "Reshape" and reshape is None:
            reshape = node
        elif node.domain == "" and node.op_type in _CHOOSING and _chooses_tokens(node):
            raise _some_tokens(value)
        elif node.domain != "" or node.op_type not in _AFTER_PROJECTION:
            raise UserError(f"the logits pass through {describe(value)}, which is not understood")
        value = _rows_input(node)
    if reshape is None:
        _gather_before(graph, node, rows)
    else:
        _gather_before_flat(graph, node, reshape, rows)


def _rows_input(node: ir.Node) -> ir.Value:
    """The input of a row by row operator that has the rows: not a bias, scale or bound."""
    given = [value for value in node.inputs if value is not None]
    moving = [value for value in given if constant(value) is None and value.producer() is not None]
    ranked = [value for value in moving if value.shape is None or len(value.shape) > 1]
    return (ranked or moving or given)[0]


def _chooses_tokens(node: ir.Node) -> bool:
    """Whether a node leaves tokens out: not one that looks up an embedding, picks of another
    axis, or slices from the first to the last."""
    data = node.inputs[0]
    if data is None or data.is_initializer() or constant(data) is not None:
        return False
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) not in _DIM_AXES
    if node.op_type != "Slice":
        return True
    bounds = [constant(value) for value in node.inputs[1:]]
    if any(bound is None for bound in bounds):
        return True
    starts, ends, *axes = (np.asarray(bound).reshape(-1) for bound in bounds)
    if axes and all(int(axis) in _DIM_AXES for axis in axes[0]):
        return False
    return bool((starts != 0).any() or (ends < _END).any())


def _some_tokens(value: ir.Value | None) -> UserError:
    return UserError(
        f"the logits are those of some tokens only, chosen by {describe(value)}: a package "
        "chooses them itself; export the model with the logits of every token "
        "(onnxruntime-genai's builder without prune_lm_head, transformers without logits_to_keep)"
    )


def _hidden(node: ir.Node) -> ir.Value:
    """What a projection reads, which must be of every token."""
    hidden = node.inputs[0]
    assert hidden is not None
    before = hidden.producer()
    chooses = before is not None and before.domain == "" and before.op_type in _CHOOSING
    if before is not None and chooses and _chooses_tokens(before):
        raise _some_tokens(hidden)
    return hidden


def _chosen(tape: ir.tape.Tape, hidden: ir.Value, rows: ir.Value) -> ir.Value:
    """Rows [B,R] of `hidden` [B,S,H]."""
    axis = tape.op("Constant", [], {"value": ir.tensor(np.array([2], np.int64))})
    index = tape.op("Unsqueeze", [rows, axis])
    chosen = tape.op("GatherND", [hidden, index], {"batch_dims": 1})
    chosen.type = hidden.type
    return chosen


def _gather_before(graph: ir.Graph, node: ir.Node, rows: ir.Value) -> None:
    hidden, tape = _hidden(node), ir.tape.Tape()
    chosen = _chosen(tape, hidden, rows)
    graph.insert_before(node, tape.nodes)
    node.replace_input_with(0, chosen)


def _gather_before_flat(graph: ir.Graph, node: ir.Node, reshape: ir.Node, rows: ir.Value) -> None:
    """Of a projection of [B·S,H] between two Reshapes."""
    hidden = _hidden(node)
    flatten = producer(hidden, "Reshape")
    before = hidden if hidden.shape is not None and len(hidden.shape) == 3 else None
    if before is None and flatten is not None:
        before = flatten.inputs[0]
    logits = reshape.outputs[0]
    vocab = logits.shape[-1] if logits.shape is not None else None
    if before is None or not isinstance(vocab, int):
        raise UserError(
            f"the vocabulary projection reads {describe(hidden)}: [batch, tokens, dim] "
            "is needed, or a reshape of it"
        )
    tape = ir.tape.Tape()
    chosen = _chosen(tape, before, rows)
    width = before.shape[-1] if before.shape is not None else None
    if not isinstance(width, int):
        raise UserError(f"{describe(before)} has no static last dimension")
    flat_shape = tape.op("Constant", [], {"value": ir.tensor(np.array([-1, width], np.int64))})
    flat = tape.op("Reshape", [chosen, flat_shape])
    flat.type = hidden.type
    count = tape.op("Shape", [rows])
    size = tape.op("Constant", [], {"value": ir.tensor(np.array([vocab], np.int64))})
    shape = tape.op("Concat", [count, size], {"axis": 0})
    graph.insert_before(node, tape.nodes)
    node.replace_input_with(0, flat)
    reshape.replace_input_with(1, shape)


def set_interface(graph: ir.Graph, plan: Plan, values: dict[str, ir.Value]) -> None:
    """The package's inputs and outputs in the order of the contract, and behind them the old
    graph's other inputs, which `clean` drops."""
    old = {value.name: value for value in graph.inputs}
    logits = graph.outputs[0]
    values["input_ids"] = old["input_ids"]
    graph.outputs.clear()
    logits.name = "logits"
    values["logits"] = logits
    logits.shape = ir.Shape(("batch", "rows", plan.spec.vocab))
    graph.outputs.extend(values[t.name] for t in plan.io if not is_input(t))
    graph.inputs.clear()
    graph.inputs.extend(values[t.name] for t in plan.io if is_input(t))
    left = [value for name, value in old.items() if name != "input_ids"]
    graph.inputs.extend(left)
    readers = [use.node for value in left for use in value.uses()]
    read_sizes_of_tokens(readers, values["input_ids"])


def clean(model: ir.Model, plan: Plan) -> None:
    """Remove what the old sites and the fusion leave behind: masks, cosines, caches, expansions,
    rotations and their function, unused constants and inputs.

    Raises UserError that names the node where an old input is still read.
    """
    graph = model.graph
    common_passes.RemoveUnusedNodesPass()(model)
    called = {node.op_identifier() for node in graph}
    for identifier in set(model.functions) - called:
        del model.functions[identifier]
    kept = sum(is_input(tensor) for tensor in plan.io)
    for value in list(graph.inputs)[kept:]:
        if value.uses():
            raise _still_read(value)
        graph.inputs.remove(value)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
    common_passes.LiftConstantsToInitializersPass()(model)
    for node in graph:
        node.metadata_props.clear()


def _still_read(value: ir.Value) -> UserError:
    user = next(iter(value.uses())).node
    told = f"{user.op_type} ({user.outputs[0].name})"
    if value.name == "position_ids":
        return UserError(
            f"positions are still read by {told}: this decoder uses them for something other than "
            "rotation"
        )
    return UserError(
        f"the input {value.name} is still read by {told} once attention and rotation are "
        "rewritten: packages have no such input, and this decoder uses it for something else"
    )
