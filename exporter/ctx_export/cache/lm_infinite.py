"""lm-infinite: the first tokens and a window, no distance beyond the trained context."""

from __future__ import annotations

from ctx_export.cache.base import Bounds, WindowPolicy


def sink_position(bounds: Bounds) -> int:
    """The last trained position: the sinks look at most L − 1 tokens away."""
    return bounds.original_context - 1


def refusal(bounds: Bounds) -> str | None:
    """Distances within the window are real ones and must be trained, too."""
    if bounds.window <= bounds.original_context:
        return None
    return (
        f"window {bounds.window} is beyond the original context of {bounds.original_context}: "
        f"lm-infinite takes at most that, give --window {bounds.original_context} or less"
    )


POLICY = WindowPolicy(
    name="lm-infinite",
    summary="the first tokens and a window, distances capped at the trained context",
    source="LM-Infinite, arXiv 2308.16137",
    default_sinks=4,
    sink_position=sink_position,
    refusal=refusal,
)
