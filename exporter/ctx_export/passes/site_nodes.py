"""The `ctx` nodes of one attention site: its rotations and its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ctx_export.core.plan import Plan
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES, Layout, Rotation
from ctx_export.passes.locate import Site
from ctx_export.passes.operators import attention_operator, rule_attributes
from ctx_export.patterns.region import Region
from ctx_export.patterns.rotary import HEADS_FIRST, RotaryMatch
from ctx_export.scaling.base import FrequencyTable


def sink_positions(position: int) -> str:
    """Name of the positions at which queries meet the sinks, none beyond `position`."""
    return f"sink_positions.{position}"


def table_suffix(plan: Plan, table: FrequencyTable) -> str:
    """What tells a layer's own table from the package's: the first layer that has it."""
    if table is plan.table:
        return ""
    return next(f".layer{layer}" for layer, own in enumerate(plan.tables) if own is table)


def baked(graph: ir.Graph, name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


@dataclass(frozen=True, slots=True)
class SiteInputs:
    """A site and what its nodes are made from."""

    site: Site
    plan: Plan
    values: dict[str, ir.Value]  # the package's inputs and outputs by name
    shared: dict[str, ir.Value]
    optional: tuple[str, ...]  # optional inputs of the layer's attention, in order

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
        suffix = table_suffix(plan, table)
        return self.shared[f"inv_freq{suffix}"], self.shared[f"multiplier{suffix}"]

    def rotation(self) -> dict[str, int]:
        return {
            "rotary_dim": 2 * len(self.plan.tables[self.site.layer].inv_freq),
            "interleaved": int(self.site.query.interleaved),
        }


def replace_site(graph: ir.Graph, inputs: SiteInputs) -> None:
    """Insert the rotations and the attention before the old attention, and take over its uses."""
    site, plan = inputs.site, inputs.plan
    cache, old = plan.caches[site.layer], site.attention.y.producer()
    assert old is not None
    nodes: list[ir.Node] = []
    asked, key, value = (
        _heads_first(nodes, part, f"ctx.layer{site.layer}.{name}")
        for name, part in (("query", site.query), ("key", site.key), ("value", site.value))
    )
    given = dict(zip(("inv_freq", "multiplier"), inputs.frequencies(), strict=True))
    query = asked
    if cache.parameters is None:
        nodes.append(inputs.rotated("query", asked, "positions"))
        query = given["sink_q"] = nodes[-1].outputs[0]
        if plan.length_table is None:
            nodes.append(inputs.rotated("key", key, "positions"))
            key = nodes[-1].outputs[0]
    if cache.sink_position is not None:
        positions = sink_positions(cache.sink_position)
        nodes.append(inputs.rotated("sink_query", asked, positions))
        given["sink_q"] = nodes[-1].outputs[0]
    if site.attention.head_sink is not None:
        given["head_sink"] = _as_float(site, nodes)
    given |= _baked_scales(graph, plan, site.layer)
    optional = [given[name] for name in inputs.optional]
    nodes.append(_attention(inputs, [query, key, value], optional))
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
    numbers: dict[str, int] = rule_attributes(cache)
    numbers |= {"rotary_dim": 0, "interleaved": 0}
    if cache.keys == "unrotated":
        numbers |= inputs.rotation()
    if cache.parameters is None:
        numbers |= {"rotation": int(Rotation.KEYS_ON_READ), "sink_position": 0}
    past = [values[f"past_key_values.{layer}.{part}"] for part in ("key", "value")]
    node = ir.node(
        attention_operator(cache).name,
        [*qkv, *past, values["seen"], values["new"], *optional],
        {
            **numbers,
            "scale": site.attention.scale,
            "softcap": site.attention.softcap,
            "alias": 1,
            "layout": int(Layout.HEAD_MAJOR),
            "optional_inputs": ",".join(inputs.optional),
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


def _baked_scales(graph: ir.Graph, plan: Plan, layer: int) -> dict[str, ir.Value]:
    """A layer's scales of a quantised cache, [Hkv] each."""
    if plan.cache_type is None:
        return {}
    if plan.scales is None:
        raise ValueError(f"a plan with caches of type {plan.cache_dtype} has no scales yet")
    scales = plan.scales[layer]
    return {
        f"{part}_scale": baked(
            graph, f"cache.layer{layer}.{part}_scale", np.asarray(numbers, np.float32)
        )
        for part, numbers in (("key", scales.key), ("value", scales.value))
    }
