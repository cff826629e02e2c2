"""Stage 5: replace every site by `ctx` nodes and give the graph the package's interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, TensorInfo
from ctx_export.core.plan import Plan
from ctx_export.core.rules import Landmark
from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.bodies import FAR_BODIES
from ctx_export.ops.frequencies import rotary_frequencies
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import DOMAIN, OPSET_VERSION, PLUGIN_ATTRIBUTES, Layout
from ctx_export.passes.fuse import fuse
from ctx_export.passes.interface import clean, project_chosen_rows, set_interface
from ctx_export.passes.locate import Site, locate
from ctx_export.passes.operators import attention_operator
from ctx_export.passes.site_nodes import (
    SiteInputs,
    baked,
    replace_site,
    sink_positions,
    table_suffix,
)
from ctx_export.passes.token_major import keep_tokens_first
from ctx_export.scaling.base import FrequencyTable

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "float8e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "int8": ir.DataType.INT8,
}


def rewrite(model: ir.Model, plan: Plan) -> None:
    """Turn a traced decoder into the package's graph, in place.

    Raises UserError where a site, the positions or the vocabulary projection is not found; the
    caller works on a clone, so nothing is left half rewritten.
    """
    graph = model.graph
    sites = locate(graph, plan.spec)
    _check_rotation(sites, plan)
    values = {tensor.name: _value(tensor) for tensor in plan.io}
    project_chosen_rows(graph, values["logit_rows"])
    shared = _shared_inputs(graph, plan, values)
    variant, far_inputs = _variant(sites, plan), _far_inputs(sites)
    for site in sites:
        near = plan.caches[site.layer].parameters is None
        optional = variant.optional if near else far_inputs
        replace_site(graph, SiteInputs(site, plan, values, shared, optional))
    variant = fuse(graph, variant)
    set_interface(graph, plan, values)
    common_passes.RemoveUnusedNodesPass()(model)
    layout = keep_tokens_first(graph)
    model.functions.clear()
    for function in (
        scaled_rotary_embedding(),
        rotary_frequencies(),
        sink_window_attention(replace(variant, layout=layout)),
        *_far_bodies(plan, far_inputs, softcap=variant.softcap, layout=layout),
    ):
        model.functions[function.identifier()] = function
    graph.opset_imports[DOMAIN] = OPSET_VERSION
    clean(model, plan)
    model.ir_version = 10
    model.producer_name = "ctx-export"


def _value(tensor: TensorInfo) -> ir.Value:
    dtype = ir.TensorType(_DTYPES[tensor.dtype])
    return ir.Value(name=tensor.name, type=dtype, shape=ir.Shape(tensor.shape))


def _check_rotation(sites: Sequence[Site], plan: Plan) -> None:
    """The graph rotates as many dims as config.json states, and a table as many as the graph does
    unless the method widens the rotation."""
    for site in sites:
        shape = plan.spec.rotary_shape(rope=plan.spec.rope_of(site.layer))
        if site.query.rotary_dim not in (0, shape.rotary_dim):
            raise UserError(
                f"layer {site.layer} rotates {site.query.rotary_dim} dims in the graph and "
                f"{shape.rotary_dim} by config.json: check partial_rotary_factor there"
            )
        planned = 2 * len(plan.tables[site.layer].inv_freq)
        if planned not in (site.query.rotary_dim, plan.spec.head_dim) and site.query.rotary_dim:
            raise UserError(
                f"layer {site.layer} rotates {site.query.rotary_dim} dims, the {plan.method} "
                f"table {planned}: check partial_rotary_factor in config.json"
            )


def _variant(sites: Sequence[Site], plan: Plan) -> AttentionVariant:
    """One body serves all sites: an input that any of them needs is given to every one."""
    optional = ["sink_q"] if plan.has_sink_query else []
    optional += ["inv_freq", "multiplier"] if plan.length_table is not None else []
    optional += ["head_sink"] if _has_head_sinks(sites) else []
    optional += ["key_scale", "value_scale"] if plan.cache_type is not None else []
    return AttentionVariant(
        optional=tuple(optional),
        cache_type=plan.cache_type,
        bounded=any(cache.policy == BOUNDED and cache.parameters is None for cache in plan.caches),
        softcap=any(site.attention.softcap for site in sites),
    )


def _far_inputs(sites: Sequence[Site]) -> tuple[str, ...]:
    """Optional inputs of the attentions that look behind a window: they rotate themselves."""
    sinks = ("head_sink",) if _has_head_sinks(sites) else ()
    return ("inv_freq", "multiplier", *sinks)


def _far_bodies(
    plan: Plan, optional: tuple[str, ...], *, softcap: bool, layout: Layout
) -> list[ir.Function]:
    """The bodies of the plan's attentions that look behind a window."""
    rules = {attention_operator(c).name: c.parameters for c in plan.caches if c.parameters}
    marked = any(isinstance(r, Landmark) and r.token is not None for r in rules.values())
    if marked and "head_sink" in optional:
        raise UserError(
            "the model's heads have learned sink logits, which landmark tokens' grouped softmax "
            "has no place for: leave --landmark-token out"
        )
    bodies = []
    for name, rule in rules.items():
        body = FAR_BODIES[name]
        own = {}
        if isinstance(rule, Landmark):
            own = {"shared": rule.shared, "landmark": rule.token is not None}
        bodies.append(
            body.make(body.variant(optional=optional, softcap=softcap, layout=layout, **own))
        )
    return bodies


def _has_head_sinks(sites: Sequence[Site]) -> bool:
    """Whether the layers have learned logits of their heads."""
    without = [site.layer for site in sites if site.attention.head_sink is None]
    if without and len(without) < len(sites):
        raise UserError(
            f"layer {without[0]} has no learned sink logits and other layers have: only decoders "
            "whose layers all have them can be exported"
        )
    return not without


def _shared_inputs(
    graph: ir.Graph, plan: Plan, values: dict[str, ir.Value]
) -> dict[str, ir.Value]:
    """What all sites read: positions [B,S] = seen + 0…S-1, those that meet the sinks where they
    differ, and the frequencies, baked or made from the rope length."""
    tape = ir.tape.Tape()

    def constant(value: object) -> ir.Value:
        return tape.op("Constant", [], {"value": ir.tensor(np.asarray(value, np.int64))})

    input_ids = next(value for value in graph.inputs if value.name == "input_ids")
    tokens = tape.op("Shape", [input_ids], {"start": 1, "end": 2})
    count = tape.op("Squeeze", [tokens])
    index = tape.op("Range", [constant(0), count, constant(1)])
    seen = tape.op("Unsqueeze", [values["seen"], constant([1])])
    shared = {"positions": tape.op("Add", [seen, index])}
    for position in sorted({c.sink_position for c in plan.caches if c.sink_position is not None}):
        name = sink_positions(position)
        shared[name] = tape.op("Min", [shared["positions"], constant(position)])
    for name, value in shared.items():
        value.name = name
        value.dtype, value.shape = ir.DataType.INT64, ir.Shape(("batch", "tokens"))
    shared |= _frequencies(graph, tape, plan, values)
    graph.insert_before(graph[0], tape.nodes)
    return shared


def _frequencies(
    graph: ir.Graph, tape: ir.tape.Tape, plan: Plan, values: dict[str, ir.Value]
) -> dict[str, ir.Value]:
    """inv_freq [1|B,F] and multiplier [1|B] of the package, and of every table beside it."""
    found: dict[str, ir.Value] = {}
    for table in {id(table): table for table in plan.tables if table is not plan.table}.values():
        found |= _baked_table(graph, table, table_suffix(plan, table))
    if plan.length_table is None:
        return {**found, **_baked_table(graph, plan.table, "")}
    tables, scalars = plan.length_table.packed()
    inv_freq, multiplier = tape.op_multi_out(
        "RotaryFrequencies",
        [
            values["rope_length"],
            baked(graph, "rope.tables", tables),
            baked(graph, "rope.scalars", scalars),
        ],
        dict(PLUGIN_ATTRIBUTES),
        num_outputs=2,
        domain=DOMAIN,
        name="ctx.frequencies",
    )
    for value, name, shape in (
        (inv_freq, "rope.inv_freq", ("batch", tables.shape[-1])),
        (multiplier, "rope.multiplier", ("batch",)),
    ):
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(shape)
    return {**found, "inv_freq": inv_freq, "multiplier": multiplier}


def _baked_table(graph: ir.Graph, table: FrequencyTable, suffix: str) -> dict[str, ir.Value]:
    """A table's initializers by the names that sites look them up with."""
    arrays = {
        "inv_freq": table.inv_freq.reshape(1, -1).astype(np.float32),
        "multiplier": np.array([table.multiplier], np.float32),
    }
    return {
        name + suffix: baked(graph, f"rope.{name}{suffix}", array)
        for name, array in arrays.items()
    }
