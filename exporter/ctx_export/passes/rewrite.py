"""Stage 5: replace every site by `ctx` nodes and give the graph the package's interface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import TensorInfo
from ctx_export.core.plan import Plan, is_input
from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import DOMAIN, OPSET_VERSION, PLUGIN_ATTRIBUTES
from ctx_export.passes.locate import Site, locate
from ctx_export.patterns.match import describe

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
}
# Elementwise operators that may stand between the vocabulary projection and the logits.
_AFTER_PROJECTION = ("Cast", "Mul", "Div", "Tanh", "Add", "Identity")


def rewrite(model: ir.Model, plan: Plan) -> None:
    """Turn a traced decoder into the package's graph, in place.

    Raises UserError where a site, the positions or the vocabulary projection is not found; the
    caller works on a clone, so nothing is left half rewritten.
    """
    graph = model.graph
    sites = locate(graph, plan.spec)
    _check_rotation(sites, plan)
    values = {tensor.name: _value(tensor) for tensor in plan.io}
    _project_chosen_rows(graph, values["logit_rows"])
    shared = _shared_inputs(graph, plan, values)
    for site in sites:
        _replace_site(graph, site, plan, values, shared)
    _set_interface(graph, plan, values)
    model.functions.clear()
    for function in (scaled_rotary_embedding(), sink_window_attention(_variant(sites))):
        model.functions[function.identifier()] = function
    graph.opset_imports[DOMAIN] = OPSET_VERSION
    _clean(model)
    model.ir_version = 10
    model.producer_name = "ctx-export"


def _value(tensor: TensorInfo) -> ir.Value:
    dtype = ir.TensorType(_DTYPES[tensor.dtype])
    return ir.Value(name=tensor.name, type=dtype, shape=ir.Shape(tensor.shape))


def _check_rotation(sites: Sequence[Site], plan: Plan) -> None:
    """The table rotates as many dims as the graph does, unless the method widens the rotation."""
    planned = 2 * len(plan.table.inv_freq)
    for site in sites:
        if planned != site.query.rotary_dim and planned != plan.spec.head_dim:
            raise UserError(
                f"layer {site.layer} rotates {site.query.rotary_dim} dims, the {plan.method} "
                f"table {planned}: check partial_rotary_factor in config.json"
            )


def _variant(sites: Sequence[Site]) -> AttentionVariant:
    return AttentionVariant(softcap=any(site.attention.softcap for site in sites))


def _shared_inputs(
    graph: ir.Graph, plan: Plan, values: dict[str, ir.Value]
) -> dict[str, ir.Value]:
    """What all sites read: positions [B,S] = seen + 0…S-1, and the baked table."""
    tape = ir.tape.Tape()
    input_ids = next(value for value in graph.inputs if value.name == "input_ids")
    tokens = tape.op("Shape", [input_ids], {"start": 1, "end": 2})
    count = tape.op("Squeeze", [tokens])
    constants = {"zero": np.int64(0), "one": np.int64(1), "column": np.array([1], np.int64)}
    held = {
        name: tape.op("Constant", [], {"value": ir.tensor(np.asarray(value))})
        for name, value in constants.items()
    }
    index = tape.op("Range", [held["zero"], count, held["one"]])
    seen = tape.op("Unsqueeze", [values["seen"], held["column"]])
    positions = tape.op("Add", [seen, index])
    positions.name = "positions"
    positions.dtype, positions.shape = ir.DataType.INT64, ir.Shape(("batch", "tokens"))
    graph.insert_before(graph[0], tape.nodes)
    tables = {
        "inv_freq": plan.table.inv_freq.reshape(1, -1).astype(np.float32),
        "multiplier": np.array([plan.table.multiplier], np.float32),
    }
    shared = {"positions": positions}
    for name, array in tables.items():
        tensor = ir.tensor(array, name=f"rope.{name}")
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
        )
        value.const_value = tensor
        graph.register_initializer(value)
        shared[name] = value
    return shared


def _replace_site(
    graph: ir.Graph,
    site: Site,
    plan: Plan,
    values: dict[str, ir.Value],
    shared: dict[str, ir.Value],
) -> None:
    """Insert two rotations and one attention before the old attention, and take over its uses."""
    layer = site.layer
    old = site.attention.y.producer()
    assert old is not None
    rotation = {
        "rotary_dim": 2 * len(plan.table.inv_freq),
        "interleaved": int(site.query.interleaved),
    }
    rotated = []
    for part, source in (("query", site.query.source), ("key", site.key.source)):
        inputs = [source, shared["positions"], shared["inv_freq"], shared["multiplier"]]
        node = ir.node(
            "ScaledRotaryEmbedding",
            inputs,
            {**rotation, **PLUGIN_ATTRIBUTES},
            domain=DOMAIN,
            name=f"ctx.layer{layer}.rotate_{part}",
        )
        _like(node.outputs[0], source, f"ctx.layer{layer}.rotated_{part}")
        graph.insert_before(old, node)
        rotated.append(node.outputs[0])
    past = [values[f"past_key_values.{layer}.{part}"] for part in ("key", "value")]
    attention = ir.node(
        "SinkWindowAttention",
        [*rotated, site.attention.v, *past, values["seen"], values["new"]],
        {
            "sinks": 0,
            "window": plan.windows[layer],
            "scale": site.attention.scale,
            "softcap": site.attention.softcap,
            "alias": 1,
            "bounded": 0,
            "rotary_dim": 0,
            "interleaved": 0,
            "optional_inputs": "",
            **PLUGIN_ATTRIBUTES,
        },
        domain=DOMAIN,
        outputs=[
            ir.Value(name=f"ctx.layer{layer}.attended"),
            values[f"present.{layer}.key"],
            values[f"present.{layer}.value"],
        ],
        name=f"ctx.layer{layer}.attention",
    )
    _like(attention.outputs[0], site.attention.y, f"ctx.layer{layer}.attended")
    graph.insert_before(old, attention)
    ir.convenience.replace_all_uses_with(site.attention.y, attention.outputs[0])


def _like(value: ir.Value, other: ir.Value, name: str) -> None:
    value.name, value.type, value.shape = name, other.type, other.shape


def _project_chosen_rows(graph: ir.Graph, rows: ir.Value) -> None:
    """Gather the rows named by `logit_rows` [B,R] before the vocabulary projection."""
    value: ir.Value | None = graph.outputs[0]
    while True:
        node = value.producer() if value is not None else None
        if node is None:
            raise UserError(f"no vocabulary projection before {describe(graph.outputs[0])}")
        if node.op_type in ("MatMul", "Gemm"):
            break
        if node.op_type not in _AFTER_PROJECTION:
            raise UserError(f"the logits pass through {describe(value)}, which is not understood")
        value = node.inputs[0]
    hidden = node.inputs[0]
    assert hidden is not None
    tape = ir.tape.Tape()
    axis = tape.op("Constant", [], {"value": ir.tensor(np.array([2], np.int64))})
    index = tape.op("Unsqueeze", [rows, axis])
    chosen = tape.op("GatherND", [hidden, index], {"batch_dims": 1})
    chosen.type = hidden.type
    graph.insert_before(node, tape.nodes)
    node.replace_input_with(0, chosen)


def _set_interface(graph: ir.Graph, plan: Plan, values: dict[str, ir.Value]) -> None:
    """The package's inputs and outputs, in the order of the contract."""
    by_name = {value.name: value for value in graph.inputs}
    position_ids, logits = by_name["position_ids"], graph.outputs[0]
    values["input_ids"] = by_name["input_ids"]
    graph.outputs.clear()
    logits.name = "logits"
    values["logits"] = logits
    logits.shape = ir.Shape(("batch", "rows", plan.spec.vocab))
    graph.outputs.extend(values[t.name] for t in plan.io if not is_input(t))
    graph.inputs.clear()
    graph.inputs.extend(values[t.name] for t in plan.io if is_input(t))
    graph.inputs.append(position_ids)  # dropped by _clean once nothing reads it
    for use in list(position_ids.uses()):
        if use.node.op_type == "Shape":  # the two inputs have one shape
            use.node.replace_input_with(use.idx, values["input_ids"])


def _clean(model: ir.Model) -> None:
    """Remove what the old sites leave behind: masks, cosines, expansions, unused constants."""
    graph = model.graph
    common_passes.RemoveUnusedNodesPass()(model)
    position_ids = graph.inputs[-1]
    if position_ids.uses():
        user = next(iter(position_ids.uses())).node
        raise UserError(
            f"positions are still read by {user.op_type} ({user.outputs[0].name}): this decoder "
            "uses them for something other than rotation"
        )
    graph.inputs.remove(position_ids)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
    common_passes.LiftConstantsToInitializersPass()(model)
    for node in graph:
        node.metadata_props.clear()
