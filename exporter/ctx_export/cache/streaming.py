"""streaming: attention sinks and a window at the positions of the cache's slots (StreamingLLM)."""

from __future__ import annotations

from ctx_export.cache.base import Bounds, WindowPolicy


def sink_position(bounds: Bounds) -> int:
    """Last slot of a cache of sinks and window: rank of the query among what it sees."""
    return bounds.sinks + bounds.window - 1


POLICY = WindowPolicy(
    name="streaming",
    aliases=("streaming-llm",),
    summary="the first tokens and a window, positions by cache slot, any length in fixed memory",
    source="StreamingLLM, arXiv 2309.17453",
    default_sinks=4,
    sink_position=sink_position,
)
