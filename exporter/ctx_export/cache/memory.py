"""memory: sinks and a window, and what falls out of it averaged into memory tokens."""

from __future__ import annotations

from ctx_export.cache.base import Asked, Reach, ReachPolicy
from ctx_export.core.errors import UserError
from ctx_export.core.rules import Memory

_SINKS, _BLOCK = 4, 16


def decide(asked: Asked) -> Reach:
    """By default a sixteenth of the span are memory tokens and the window is all that is left."""
    given, span = asked.options, asked.span
    sinks = given.get("sinks", _SINKS)
    block = given.get("memory_block", min(_BLOCK, max(1, span // 8)))
    memory = given.get("memory_tokens", max(1, span // 16))
    # Positions in use: the sinks, the memory, and window + block - 1 tokens not averaged yet.
    left = span + 1 - sinks - memory - block
    window = given.get("window", left)
    if not 1 <= window <= left:
        told = f"and a window of {window} " if "window" in given else ""
        fix = f"--window {left} or less" if left >= 1 else "fewer --memory-tokens"
        raise UserError(
            f"memory has {sinks} sinks, {memory} memory tokens, blocks of {block} tokens {told}"
            f"within {span} positions: it needs a window of at least 1 and all of them to fit; "
            f"give {fix}, or a --method and --target that scale to more"
        )
    slots = memory + -(-asked.max_chunk // block)
    return Reach(
        sinks=sinks,
        window=window,
        rule=Memory(memory=memory, block=block, memory_slots=slots),
    )


POLICY = ReachPolicy(
    name="memory",
    aliases=("memory-tokens",),
    summary="sinks and a window, what falls out of it averaged into memory tokens, any length in "
    "fixed memory",
    source="after Compressive Transformers, arXiv 1911.05507",
    options=("sinks", "window", "memory_tokens", "memory_block"),
    decide=decide,
)
