"""Which positions are compared and how: one prefill, and probes farther out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

DEFAULT_BUDGET = 4096  # tokens of the full prefill
_LEAST_BUDGET = 256  # however big the model is
# Tokens × parameters of a prefill that two cores compute in a minute or two.
_PREFILL_WORK = 1 << 40
PROBE_TOKENS = 16  # of one probe; at most 64
_PROBE_DECODE = 4  # the last tokens of a probe are fed one at a time
_DECODE_BEFORE, _DECODE_AFTER = 2, 2  # tokens decoded around a position of the table
_FAR = (10**6, 1 << 31)  # positions that no cache of every token would reach
_FEED_BYTES = 128 << 20  # logits of one feed; a longer prefill is fed in pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`tokens` tokens from position `start` on, over a synthetic cache of `start` tokens."""

    start: int
    tokens: int

    @property
    def end(self) -> int:
        """First position after the probe."""
        return self.start + self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPlan:
    """`prefill` tokens from position 0 are computed in full; `positions` are the table's."""

    prefill: int
    positions: tuple[int, ...]
    probes: tuple[Probe, ...]

    @property
    def tokens(self) -> int:
        """Longest sequence that either side holds."""
        return max([self.prefill, *(probe.end for probe in self.probes)])


def default_budget(parameters: int) -> int:
    """Tokens of the full prefill of a model with so many parameters: 4096, from 0.25B on fewer."""
    return max(_LEAST_BUDGET, min(DEFAULT_BUDGET, _PREFILL_WORK // max(1, parameters)))


def listed_positions(
    original_context: int, max_context: int | None, ring: int | None = None
) -> tuple[int, ...]:
    """0, L−1, L, L+1, 2L, 4L, … and the last position T−1, those below T, in order.

    A bounded cache of `ring` slots adds its first wrap and what follows three. Where nothing ends
    (T is None) positions far beyond it stand for the doubled ones.
    """
    around = {0, original_context - 1, original_context, original_context + 1}
    wraps = {ring, 3 * ring + 1} if ring is not None else set()
    if max_context is None:
        far = {10 * ring, *_FAR} if ring is not None else set(_FAR)
        return tuple(sorted(around | wraps | far))
    if not 1 <= original_context <= max_context:
        raise UserError(
            f"original context {original_context} and maximum context {max_context}: the maximum "
            "must be at least the original; export the package again"
        )
    found = around | wraps | {max_context - 1}
    position = 2 * original_context
    while position < max_context:
        found.add(position)
        position *= 2
    return tuple(sorted(p for p in found if 0 <= p < max_context))


def make_plan(
    original_context: int, max_context: int | None, budget: int, ring: int | None = None
) -> ValidationPlan:
    """Positions of a package: below `budget` by one prefill, farther out by probes.

    A probe begins at its position, so that the position is also the first token of a chunk; the
    last one ends with the context, if it ends. No position is computed twice. `ring`: slots of the
    largest bounded cache.
    """
    if budget < 1:
        raise UserError(f"budget is {budget}: give at least 1 token, such as {DEFAULT_BUDGET}")
    positions = listed_positions(original_context, max_context, ring)
    end = positions[-1] + PROBE_TOKENS if max_context is None else max_context
    prefill = done = min(budget, end)
    probes: list[Probe] = []
    for position in positions:
        if position < done:
            continue
        start = max(done, min(position, end - PROBE_TOKENS))
        probes.append(Probe(start=start, tokens=min(PROBE_TOKENS, end - start)))
        done = probes[-1].end
    return ValidationPlan(prefill=prefill, positions=positions, probes=tuple(probes))


def ragged_chunks(tokens: int, sizes: tuple[int, ...] = (1, 7, 64, 129, 3, 257)) -> list[int]:
    """`tokens` cut into uneven chunks: `sizes` in turn, the last one shorter."""
    chunks: list[int] = []
    while (left := tokens - sum(chunks)) > 0:
        chunks.append(min(sizes[len(chunks) % len(sizes)], left))
    return chunks


def feed_limit(vocab: int) -> int:
    """Most tokens of one feed whose logits fit into memory."""
    return max(1, _FEED_BYTES // (4 * vocab))


def decoded_positions(plan: ValidationPlan) -> list[int]:
    """The listed positions of the prefill with their neighbours, which are fed one at a time."""
    near = {p + step for p in plan.positions for step in range(-_DECODE_BEFORE, _DECODE_AFTER + 1)}
    return sorted(p for p in near if 0 <= p < plan.prefill)


def decode_feeds(plan: ValidationPlan, most: int) -> list[int]:
    """The prefill's tokens in feeds: one at a time where they are decoded, at most `most` at once
    between, up to the last decoded one."""
    feeds: list[int] = []
    for position in decoded_positions(plan):
        while (gap := position - sum(feeds)) > 0:
            feeds.append(min(gap, most))
        feeds.append(1)
    return feeds


def probe_feeds(tokens: int) -> list[int]:
    """A probe's tokens: a chunk, then the last few one at a time."""
    single = min(_PROBE_DECODE, tokens - 1)
    return [tokens - single, *[1] * single]


def rope_lengths(feeds: Sequence[int], start: int = 0) -> NDArray[np.int64]:
    """The rope length of every token of unplanned `feeds` from position `start` on: where its feed
    ends."""
    return np.repeat(start + np.cumsum(feeds, dtype=np.int64), feeds)
