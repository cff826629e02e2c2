"""Which positions are compared and how: one prefill, and probes farther out."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.errors import UserError

DEFAULT_BUDGET = 4096  # tokens of the full prefill
_LEAST_BUDGET = 256  # however big the model is
# Tokens × parameters of a prefill that two cores compute in a minute or two.
_PREFILL_WORK = 1 << 40
PROBE_TOKENS = 16  # of one probe; at most 64
PROBE_DECODE = 4  # the last tokens of a probe are fed one at a time


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


def listed_positions(original_context: int, max_context: int) -> tuple[int, ...]:
    """0, L−1, L, L+1, 2L, 4L, … and the last position T−1, those below T, in order."""
    if not 1 <= original_context <= max_context:
        raise UserError(
            f"original context {original_context} and maximum context {max_context}: the maximum "
            "must be at least the original; export the package again"
        )
    found = {0, original_context - 1, original_context, original_context + 1, max_context - 1}
    position = 2 * original_context
    while position < max_context:
        found.add(position)
        position *= 2
    return tuple(sorted(p for p in found if 0 <= p < max_context))


def make_plan(original_context: int, max_context: int, budget: int) -> ValidationPlan:
    """Positions of a package: below `budget` by one prefill, farther out by probes.

    A probe begins at its position, so that the position is also the first token of a chunk; the
    last one ends with the context. No position is computed twice.
    """
    if budget < 1:
        raise UserError(f"budget is {budget}: give at least 1 token, such as {DEFAULT_BUDGET}")
    positions = listed_positions(original_context, max_context)
    prefill = done = min(budget, max_context)
    probes: list[Probe] = []
    for position in positions:
        if position < done:
            continue
        start = max(done, min(position, max_context - PROBE_TOKENS))
        probes.append(Probe(start=start, tokens=min(PROBE_TOKENS, max_context - start)))
        done = probes[-1].end
    return ValidationPlan(prefill=prefill, positions=positions, probes=tuple(probes))


def ragged_chunks(tokens: int, sizes: tuple[int, ...] = (1, 7, 64, 129, 3, 257)) -> list[int]:
    """`tokens` cut into uneven chunks: `sizes` in turn, the last one shorter."""
    chunks: list[int] = []
    while (left := tokens - sum(chunks)) > 0:
        chunks.append(min(sizes[len(chunks) % len(sizes)], left))
    return chunks
