"""Stage 3: every rotary + attention site of a source, or an error naming the nearest miss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.patterns.attention import AttentionMatch, is_attention, match_attention
from ctx_export.patterns.match import Miss, dimension
from ctx_export.patterns.rotary import RotaryMatch, match_rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One layer's attention: its match and the rotations of its queries and keys."""

    layer: int
    attention: AttentionMatch
    query: RotaryMatch
    key: RotaryMatch


def locate(graph: ir.Graph, spec: ModelSpec) -> tuple[Site, ...]:
    """The sites of `graph` in layer order; raises UserError unless every layer has exactly one."""
    nodes = [node for node in graph if is_attention(node)]
    if len(nodes) != spec.layers:
        raise UserError(
            f"the graph has {len(nodes)} attention nodes for {spec.layers} layers: only decoders "
            "with one attention per layer can be exported"
        )
    sites = tuple(
        _site(node, layer, rotates=spec.rope_of(layer).rotates) for layer, node in enumerate(nodes)
    )
    for site in sites:
        _check(site, spec)
    return sites


def _site(node: ir.Node, layer: int, *, rotates: bool) -> Site:
    attention = match_attention(node)
    if isinstance(attention, Miss):
        raise _unmatched(layer, attention)
    query, key = match_rotary(attention.q), _match_key(attention)
    if not rotates:
        query, key = _unrotated(layer, attention, (query, key))
    for rotation in (query, key):
        if isinstance(rotation, Miss):
            raise _unmatched(layer, rotation)
    assert isinstance(query, RotaryMatch) and isinstance(key, RotaryMatch)
    return Site(layer=layer, attention=attention, query=query, key=key)


def _match_key(attention: AttentionMatch) -> RotaryMatch | Miss:
    found = match_rotary(attention.k)
    if isinstance(found, RotaryMatch) and attention.key_transposed:
        return replace(found, transposed=True)
    return found


def _unrotated(
    layer: int, attention: AttentionMatch, found: tuple[RotaryMatch | Miss, ...]
) -> tuple[RotaryMatch, RotaryMatch]:
    """Queries and keys of a layer that config.json states to be without positions."""
    if any(isinstance(rotation, RotaryMatch) for rotation in found):
        raise UserError(
            f"layer {layer} rotates in the graph and has no positions by config.json: config and "
            "model do not belong together"
        )
    query = RotaryMatch(source=attention.q, rotary_dim=0, interleaved=False)
    return query, replace(query, source=attention.k, transposed=attention.key_transposed)


def _unmatched(layer: int, miss: Miss) -> UserError:
    return UserError(f"layer {layer} has no rotary position encoding that can be scaled: {miss}")


def _check(site: Site, spec: ModelSpec) -> None:
    """The graph must be the model its config describes."""
    found = (
        dimension(site.attention.q, 1),
        dimension(site.key.source, 2 if site.key.transposed else 1),
        dimension(site.attention.q, 3),
    )
    expected = (spec.heads, spec.kv_heads, spec.head_dim)
    if found != expected:
        raise UserError(
            f"layer {site.layer} has (query heads, KV heads, head dim) {found} in the graph and "
            f"{expected} in config.json"
        )
    rotation = (site.query.rotary_dim, site.query.interleaved)
    if rotation != (site.key.rotary_dim, site.key.interleaved):
        raise UserError(f"layer {site.layer} rotates its queries and keys differently")
