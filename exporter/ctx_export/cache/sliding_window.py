"""sliding-window: the newest tokens alone."""

from __future__ import annotations

from ctx_export.cache.base import Bounds, WindowPolicy


def refusal(bounds: Bounds) -> str | None:
    """Sinks are what tells the streaming policy from this one."""
    if not bounds.sinks:
        return None
    return (
        f"method sliding-window has no sinks and --sinks is {bounds.sinks}: leave it out, or "
        "choose --method streaming"
    )


POLICY = WindowPolicy(
    name="sliding-window",
    summary="the newest tokens alone, any length in fixed memory",
    source="Longformer, arXiv 2004.05150; Mistral 7B, arXiv 2310.06825",
    default_sinks=0,
    sink_position=lambda bounds: 0,
    refusal=refusal,
)
