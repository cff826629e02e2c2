"""dual-chunk: positions count up within chunks, earlier chunks are met at the last position."""

from __future__ import annotations

from ctx_export.cache.base import Asked, Reach, ReachPolicy
from ctx_export.core.errors import UserError
from ctx_export.core.rules import DualChunk


def decide(asked: Asked) -> Reach:
    """By default chunks of three quarters of the span; the rest is the local window."""
    span = asked.span
    chunk = asked.options.get("chunk", max(1, span * 3 // 4))
    if chunk > span:
        raise UserError(
            f"chunk is {chunk} and the model knows {span} positions: give --chunk {span} or less, "
            "or a --method and --factor that scale to more"
        )
    return Reach(rule=DualChunk(chunk=chunk, reach=span))


POLICY = ReachPolicy(
    name="dual-chunk",
    aliases=("dca",),
    summary="positions count up within chunks, earlier chunks are met at the last position",
    source="Dual Chunk Attention, arXiv 2402.17463",
    options=("chunk",),
    bounded=False,
    decide=decide,
)
