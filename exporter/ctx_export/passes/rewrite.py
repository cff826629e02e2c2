"""Stage 5: replace every site by `ctx` nodes and give the graph the package's interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, TensorInfo
from ctx_export.core.plan import Plan
from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.frequencies import rotary_frequencies
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import DOMAIN, OPSET_VERSION, PLUGIN_ATTRIBUTES
from ctx_export.passes.fuse import fuse
from ctx_export.passes.interface import clean, project_chosen_rows, set_interface
from ctx_export.passes.locate import Site, locate
from ctx_export.passes.token_major import keep_tokens_first
from ctx_export.patterns.region import Region
from ctx_export.patterns.rotary import HEADS_FIRST, RotaryMatch
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
    variant = _variant(sites, plan)
    for site in sites:
        _replace_site(graph, SiteInputs(site, plan, values, shared, variant))
    variant = fuse(graph, variant)
    set_interface(graph, plan, values)
    common_passes.RemoveUnusedNodesPass()(model)
    variant = keep_tokens_first(graph, variant)
    model.functions.clear()
    for function in (
        scaled_rotary_embedding(),
        sink_window_attention(variant),
        rotary_frequencies(),
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
        bounded=any(cache.policy == BOUNDED for cache in plan.caches),
        softcap=any(site.attention.softcap for site in sites),
    )


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
        name = _sink_positions(position)
        shared[name] = tape.op("Min", [shared["positions"], constant(position)])
    for name, value in shared.items():
        value.name = name
        value.dtype, value.shape = ir.DataType.INT64, ir.Shape(("batch", "tokens"))
    shared |= _frequencies(graph, tape, plan, values)
    graph.insert_before(graph[0], tape.nodes)
    return shared


def _sink_positions(position: int) -> str:
    """Name of the positions at which queries meet the sinks, none beyond `position`."""
    return f"sink_positions.{position}"


def _frequencies(
    graph: ir.Graph, tape: ir.tape.Tape, plan: Plan, values: dict[str, ir.Value]
) -> dict[str, ir.Value]:
    """inv_freq [1|B,F] and multiplier [1|B] of the package, and of every table beside it."""
    found: dict[str, ir.Value] = {}
    for table in {id(table): table for table in plan.tables if table is not plan.table}.values():
        found |= _baked_table(graph, table, _suffix(plan, table))
    if plan.length_table is None:
        return {**found, **_baked_table(graph, plan.table, "")}
    tables, scalars = plan.length_table.packed()
    inv_freq, multiplier = tape.op_multi_out(
        "RotaryFrequencies",
        [
            values["rope_length"],
            _baked(graph, "rope.tables", tables),
            _baked(graph, "rope.scalars", scalars),
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


def _suffix(plan: Plan, table: FrequencyTable) -> str:
    """What tells a layer's own table from the package's: the first layer that has it."""
    if table is plan.table:
        return ""
    return next(f".layer{layer}" for layer, own in enumerate(plan.tables) if own is table)


def _baked_table(graph: ir.Graph, table: FrequencyTable, suffix: str) -> dict[str, ir.Value]:
    """A table's initializers by the names that sites look them up with."""
    arrays = {
        "inv_freq": table.inv_freq.reshape(1, -1).astype(np.float32),
        "multiplier": np.array([table.multiplier], np.float32),
    }
    return {
        name + suffix: _baked(graph, f"rope.{name}{suffix}", array)
        for name, array in arrays.items()
    }


def _baked(graph: ir.Graph, name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def _baked_scales(graph: ir.Graph, plan: Plan, layer: int) -> dict[str, ir.Value]:
    """A layer's scales of a quantised cache, [Hkv] each."""
    if plan.cache_type is None:
        return {}
    if plan.scales is None:
        raise ValueError(f"a plan with caches of type {plan.cache_dtype} has no scales yet")
    scales = plan.scales[layer]
    return {
        f"{part}_scale": _baked(
            graph, f"cache.layer{layer}.{part}_scale", np.asarray(numbers, np.float32)
        )
        for part, numbers in (("key", scales.key), ("value", scales.value))
    }


@dataclass(frozen=True, slots=True)
class SiteInputs:
    """A site and what its nodes are made from."""

    site: Site
    plan: Plan
    values: dict[str, ir.Value]  # the package's inputs and outputs by name
    shared: dict[str, ir.Value]
    variant: AttentionVariant

    def rotated(self, part: str, source: ir.Value, positions: str) -> ir.Node:
        """A rotation of `source` at the shared positions of that name."""
        layer = self.site.layer
        node = ir.node(
            "ScaledRotaryEmbedding",
            [source, self.shared[positions], *self.frequencies()],
            {**self.rotation(), **PLUGIN_ATTRIBUTES},
            domain=DOMAIN,
            name=f"ctx.layer{layer}.rotate_{part}",
        )
        _like(node.outputs[0], source, f"ctx.layer{layer}.rotated_{part}")
        return node

    def frequencies(self) -> tuple[ir.Value, ir.Value]:
        """inv_freq and multiplier of the site's layer."""
        plan, table = self.plan, self.plan.tables[self.site.layer]
        suffix = _suffix(plan, table)
        return self.shared[f"inv_freq{suffix}"], self.shared[f"multiplier{suffix}"]

    def rotation(self) -> dict[str, int]:
        return {
            "rotary_dim": 2 * len(self.plan.tables[self.site.layer].inv_freq),
            "interleaved": int(self.site.query.interleaved),
        }


def _replace_site(graph: ir.Graph, inputs: SiteInputs) -> None:
    """Insert the rotations and the attention before the old attention, and take over its uses."""
    site, plan = inputs.site, inputs.plan
    cache, old = plan.caches[site.layer], site.attention.y.producer()
    assert old is not None
    nodes: list[ir.Node] = []
    asked, key, value = (
        _heads_first(nodes, part, f"ctx.layer{site.layer}.{name}")
        for name, part in (("query", site.query), ("key", site.key), ("value", site.value))
    )
    query = inputs.rotated("query", asked, "positions")
    nodes.append(query)
    if plan.length_table is None:
        nodes.append(inputs.rotated("key", key, "positions"))
        key = nodes[-1].outputs[0]
    given = dict(zip(("inv_freq", "multiplier"), inputs.frequencies(), strict=True))
    given["sink_q"] = query.outputs[0]
    if cache.sink_position is not None:
        positions = _sink_positions(cache.sink_position)
        nodes.append(inputs.rotated("sink_query", asked, positions))
        given["sink_q"] = nodes[-1].outputs[0]
    if site.attention.head_sink is not None:
        given["head_sink"] = _as_float(site, nodes)
    given |= _baked_scales(graph, plan, site.layer)
    optional = [given[name] for name in inputs.variant.optional]
    nodes.append(_attention(inputs, [query.outputs[0], key, value], optional))
    attended = nodes[-1].outputs[0]
    if site.transposed:
        attended = _swapped(nodes, attended, f"ctx.layer{site.layer}.attended_by_token")
    graph.insert_before(old, nodes)
    ir.convenience.replace_all_uses_with(site.attention.y, attended)


def _heads_first(nodes: list[ir.Node], part: RotaryMatch | Region, name: str) -> ir.Value:
    """A source as [B,H,S,D]; what makes it so joins `nodes`."""
    return _swapped(nodes, part.source, name) if part.transposed else part.source


def _swapped(nodes: list[ir.Node], value: ir.Value, name: str) -> ir.Value:
    """`value` with heads and tokens swapped; the node that does it joins `nodes`."""
    node = ir.node("Transpose", [value], {"perm": HEADS_FIRST}, name=f"{name}.transpose")
    assert value.shape is not None
    made = node.outputs[0]
    made.name, made.type = name, value.type
    made.shape = ir.Shape([value.shape[axis] for axis in HEADS_FIRST])
    nodes.append(node)
    return made


def _as_float(site: Site, nodes: list[ir.Node]) -> ir.Value:
    """The learned logits of a site's heads [Hq] in float32; what makes them so joins `nodes`."""
    sink = site.attention.head_sink
    assert sink is not None
    heads = site.sizes[0]
    if sink.dtype is not ir.DataType.FLOAT:
        nodes.append(ir.node("Cast", [sink], {"to": ir.DataType.FLOAT}))
        sink = nodes[-1].outputs[0]
        sink.name, sink.dtype = f"ctx.layer{site.layer}.head_sink", ir.DataType.FLOAT
        sink.shape = ir.Shape([heads])
    if site.attention.head_sink is not None and len(site.attention.head_sink.shape or ()) != 1:
        row = ir.node("Constant", [], {"value": ir.tensor(np.array([heads], np.int64))})
        nodes += [row, ir.node("Reshape", [sink, row.outputs[0]])]
        sink = nodes[-1].outputs[0]
        sink.name, sink.dtype = f"ctx.layer{site.layer}.head_sinks", ir.DataType.FLOAT
        sink.shape = ir.Shape([heads])
    return sink


def _attention(
    inputs: SiteInputs, qkv: Sequence[ir.Value], optional: Sequence[ir.Value]
) -> ir.Node:
    site, values, layer = inputs.site, inputs.values, inputs.site.layer
    cache = inputs.plan.caches[layer]
    unrotated = inputs.plan.length_table is not None
    past = [values[f"past_key_values.{layer}.{part}"] for part in ("key", "value")]
    node = ir.node(
        "SinkWindowAttention",
        [*qkv, *past, values["seen"], values["new"], *optional],
        {
            "sinks": cache.sinks,
            "window": cache.window,
            "scale": site.attention.scale,
            "softcap": site.attention.softcap,
            "alias": 1,
            "bounded": int(cache.policy == BOUNDED),
            **(inputs.rotation() if unrotated else {"rotary_dim": 0, "interleaved": 0}),
            "rotation": int(inputs.variant.rotation),
            "sink_position": 0,
            "layout": int(inputs.variant.layout),
            "optional_inputs": ",".join(inputs.variant.optional),
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
    _like(node.outputs[0], qkv[0], f"ctx.layer{layer}.attended")
    return node


def _like(value: ir.Value, other: ir.Value, name: str) -> None:
    value.name, value.type, value.shape = name, other.type, other.shape
