"""Which `ctx` operator attends over a layer's cache, and the numbers that its rule has."""

from __future__ import annotations

from ctx_export.core.manifest import BOUNDED, CacheInfo
from ctx_export.core.rules import DualChunk, Landmark, Memory, SelfExtend
from ctx_export.ops.spec import (
    DUAL_CHUNK_ATTENTION,
    LANDMARK_ATTENTION,
    MEMORY_ATTENTION,
    SELF_EXTEND_ATTENTION,
    SINK_WINDOW_ATTENTION,
    OperatorSpec,
)

ATTENTIONS: tuple[OperatorSpec, ...] = (
    SINK_WINDOW_ATTENTION,
    SELF_EXTEND_ATTENTION,
    DUAL_CHUNK_ATTENTION,
    MEMORY_ATTENTION,
    LANDMARK_ATTENTION,
)
ATTENTION_NAMES = frozenset(spec.name for spec in ATTENTIONS)


def attention_operator(cache: CacheInfo) -> OperatorSpec:
    """The attention of a layer with that cache."""
    return _decided(cache)[0]


def rule_attributes(cache: CacheInfo) -> dict[str, int]:
    """The node attributes that say what is seen at which positions."""
    return _decided(cache)[1]


def _decided(cache: CacheInfo) -> tuple[OperatorSpec, dict[str, int]]:
    near = {"sinks": cache.sinks, "window": cache.window}
    match cache.parameters:
        case SelfExtend(group=group, neighbor=neighbor):
            return SELF_EXTEND_ATTENTION, {"group": group, "neighbor": neighbor}
        case DualChunk(chunk=chunk, reach=reach):
            return DUAL_CHUNK_ATTENTION, {"chunk": chunk, "reach": reach}
        case Memory(memory=memory, block=block, memory_slots=slots):
            own = {"memory": memory, "block": block, "memory_slots": slots}
            return MEMORY_ATTENTION, {**near, **own}
        case Landmark(block=block, topk=topk, shared=shared, token=token):
            own = {"block": block, "topk": topk, "shared": int(shared)}
            return LANDMARK_ATTENTION, {**near, **own, "landmark": int(token is not None)}
        case None:
            return SINK_WINDOW_ATTENTION, {**near, "bounded": int(cache.policy == BOUNDED)}
