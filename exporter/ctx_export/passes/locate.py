"""Stage 3: every rotary + attention site of a source, or an error naming the nearest miss."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.passes.heads import separate_grouped_heads
from ctx_export.patterns.alike import Alike
from ctx_export.patterns.attention import AttentionMatch, is_attention, match_attention
from ctx_export.patterns.behaviour import Behaviour, Sources, observe
from ctx_export.patterns.graph_view import GraphView
from ctx_export.patterns.match import Miss, describe, dimension
from ctx_export.patterns.region import Region, trace_back
from ctx_export.patterns.rotary import RotaryMatch, match_rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One layer's attention and what it is made from.

    `query` and `key` say how the projections' results are rotated; `value` is v before cached
    tokens and repeated heads. `window`: tokens that a token sees, itself included, 0 for all
    before it. `transposed`: the attention's result is [B,S,H,D].
    """

    layer: int
    attention: AttentionMatch
    query: RotaryMatch
    key: RotaryMatch
    value: Region
    window: int
    transposed: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Query heads, KV heads and head dimension."""
        heads = [
            dimension(part.source, 2 if part.transposed else 1) for part in (self.query, self.key)
        ]
        dim = dimension(self.query.source, 3)
        assert heads[0] is not None and heads[1] is not None and dim is not None
        return heads[0], heads[1], dim


def find_sites(graph: ir.Graph) -> tuple[Site, ...]:
    """The attentions of `graph` in its order; raises UserError for one that cannot be rewritten,
    with the nearest match, the node where it ended and why."""
    for index, value in enumerate(v for node in graph for v in node.outputs):
        value.name = value.name or f"unnamed.{index}"
    separate_grouped_heads(graph)
    view = GraphView(graph)
    alike = Alike(view)
    nodes = [node for node in graph if is_attention(node)]
    return tuple(_site(view, alike, node, layer) for layer, node in enumerate(nodes))


def locate(graph: ir.Graph, spec: ModelSpec) -> tuple[Site, ...]:
    """The sites of `graph` in layer order; raises UserError unless every layer of `spec` has
    exactly one, of its sizes."""
    sites = find_sites(graph)
    if len(sites) != spec.layers:
        raise UserError(
            f"the graph has {len(sites)} attention nodes for {spec.layers} layers: only decoders "
            "with one attention per layer can be exported"
        )
    for site in sites:
        _check(site, spec)
    return sites


def _site(view: GraphView, alike: Alike, node: ir.Node, layer: int) -> Site:
    attention = match_attention(view, node)
    if isinstance(attention, Miss):
        raise _unmatched(layer, attention)
    query, key = (match_rotary(view, part, alike) for part in (attention.q, attention.k))
    value = trace_back(view, attention.v)
    for part in (query, key, value):
        if isinstance(part, Miss):
            raise _unmatched(layer, part)
    assert isinstance(query, RotaryMatch) and isinstance(key, RotaryMatch)
    assert isinstance(value, Region)
    if (query.rotary_dim, query.interleaved) != (key.rotary_dim, key.interleaved):
        raise UserError(
            f"layer {layer} rotates {_told(query)} of its queries and {_told(key)} of its keys: "
            "scores then do not follow the distance alone"
        )
    behaviour = _behaviour(view, alike, attention, (query, key, value))
    if isinstance(behaviour, Miss):
        raise _unmatched(layer, behaviour)
    return Site(
        layer=layer,
        attention=attention,
        query=query,
        key=key,
        value=value,
        window=behaviour.window,
        transposed=behaviour.transposed,
    )


def _behaviour(
    view: GraphView,
    alike: Alike,
    attention: AttentionMatch,
    parts: tuple[RotaryMatch, RotaryMatch, Region],
) -> Behaviour | Miss:
    if attention.window is not None:
        return Behaviour(window=attention.window, transposed=False)
    query, key, value = parts
    regions = (
        Region(source=part.source, transposed=part.transposed, turns=bool(part.rotary_dim))
        for part in (query, key)
    )
    q, k = regions
    sink = None if attention.head_sink is None else alike.leaf(attention.head_sink)
    return alike.once(
        (attention.y, attention.q, attention.k),
        (q.source, k.source, value.source),
        lambda: observe(view, attention, Sources(q=q, k=k, v=value)),
        (attention.scale, attention.softcap, sink, q.turns, k.turns),
    )


def _told(rotation: RotaryMatch) -> str:
    if not rotation.rotary_dim:
        return "no dims"
    return f"{rotation.rotary_dim} dims, {'neighbours' if rotation.interleaved else 'halves'},"


def _unmatched(layer: int, miss: Miss) -> UserError:
    return UserError(f"layer {layer} has no rotary position encoding that can be scaled: {miss}")


def _unrotated(site: Site) -> str:
    """Why the queries of a layer that should rotate do not."""
    producer = site.query.source.producer()
    assert producer is not None and isinstance(producer.graph, ir.Graph)
    turned = _turned_before(GraphView(producer.graph), site.query.source)
    if turned is None:
        return (
            f"has no rotary position encoding on the way to its queries, "
            f"{describe(site.query.source)}: positions that are learned or added to embeddings "
            "and scores cannot be scaled; state layers without positions in config.json"
        )
    return (
        f"changes its queries between rotating them at {describe(turned)} and attending with "
        "them: only a rotation that comes last, after norms, can be scaled"
    )


def _turned_before(view: GraphView, value: ir.Value) -> ir.Value | None:
    """A rotation from which `value` is computed without a projection in between."""
    pending, known = [value], set[ir.Node]()
    while pending:
        node = pending.pop().producer()
        if node is None or node in known or node.op_type in ("MatMul", "Gemm"):
            continue
        known.add(node)
        if node.op_type in ("RotaryEmbedding", "Mul") and view.positional.intersection(
            read for read in node.inputs if read is not None
        ):
            return node.outputs[0]
        pending.extend(read for read in node.inputs if read is not None)
    return None


def _check(site: Site, spec: ModelSpec) -> None:
    """The graph must be the model its config describes."""
    expected = (spec.heads, spec.kv_heads, spec.head_dim)
    if site.sizes != expected:
        raise UserError(
            f"layer {site.layer} has (query heads, KV heads, head dim) {site.sizes} in the graph "
            f"and {expected} in config.json"
        )
    rotates = spec.rope_of(site.layer).rotates
    if rotates and not site.query.rotary_dim:
        raise UserError(f"layer {site.layer} {_unrotated(site)}")
    if not rotates and site.query.rotary_dim:
        raise UserError(
            f"layer {site.layer} has no positions by config.json and rotates in the graph: config "
            "and model do not belong together"
        )
    if site.window != spec.windows[site.layer]:
        raise UserError(
            f"layer {site.layer} has a window of {site.window} tokens in the graph (0: none) and "
            f"of {spec.windows[site.layer]} in config.json: config and model do not belong "
            "together"
        )
