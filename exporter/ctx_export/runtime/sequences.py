"""Bookkeeping of a batch of sequences: lengths, limits, and how far back each one can be taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ctx_export.core.manifest import BOUNDED, CacheInfo
from ctx_export.runtime.backend import Ints
from ctx_export.runtime.errors import ContextLimitError, SessionStateError
from ctx_export.runtime.landmarks import LandmarkTokens, fed_tokens
from ctx_export.runtime.slots import ring_size, scores_of_row, shortest_length, slots_in_use

_FIRST_CAPACITY = 256  # slots
_GROWTH = 1.25  # copies stay a small part of what attention reads, waste at most a quarter


class Sequences:
    """Lengths of the sequences of a session, in tokens that the model was fed; what comes from
    users and goes to them is in tokens of their texts, which has no landmark tokens.

    `seen[b]` tokens are in sequence b. `peak[b]` is the most it ever had since it was last empty:
    what a ring's slots were overwritten with, which is what limits taking tokens back. `used[b]`
    is the most that its slots have held since they were last filled with zeros.
    """

    def __init__(
        self, batch: int, caches: Iterable[CacheInfo], max_context: int | None = None
    ) -> None:
        self.seen: Ints = np.zeros(batch, np.int64)
        self._peak: Ints = np.zeros(batch, np.int64)
        self._used: Ints = np.zeros(batch, np.int64)
        self._kinds = set(caches)
        self._maximum = max_context  # of text
        self.landmarks = LandmarkTokens.of(self._kinds)
        self._rings = [cache for cache in self._kinds if cache.policy == BOUNDED]
        self._lost: set[int] = set()

    @property
    def lengths(self) -> Ints:
        """Tokens of text in every sequence [B]; a copy."""
        return self.seen.copy() if self.landmarks is None else self.landmarks.text(self.seen)

    def check_feed(self, lengths: Ints) -> None:
        """Raise before anything is written where `lengths` [B] more tokens of text cannot be
        taken."""
        self.check_usable([row for row, count in enumerate(lengths) if count])
        maximum, before = self._maximum, self.lengths
        for row, total in enumerate(before + lengths):
            if maximum is not None and total > maximum:
                raise ContextLimitError(
                    f"sequence {row} has {before[row]} tokens and {lengths[row]} more would "
                    f"pass the package's maximum context of {maximum}: feed at most "
                    f"{maximum - before[row]}, or export with a larger --target"
                )

    def check_usable(self, rows: Sequence[int]) -> None:
        """Raise where a failed call left one of `rows` in a state that nobody knows."""
        for row in rows:
            if row in self._lost:
                raise SessionStateError(
                    f"sequence {row} was lost when a call failed: reset([{row}]) and feed it again"
                )

    def touched(self, totals: Ints) -> None:
        """A call is about to write up to `totals` [B] tokens."""
        self._peak = np.maximum(self._peak, totals)
        self._used = np.maximum(self._used, totals)

    def advance(self, lengths: Ints) -> None:
        """All calls of a feed succeeded, `lengths` [B] tokens."""
        self.seen = self.seen + lengths

    def failed(self) -> None:
        """A call failed half way: sequences stay at their lengths where the cache still has what
        their next token sees, and are lost where it has not."""
        for row, seen in enumerate(self.seen):
            if seen < self.shortest(row):
                self._lost.add(row)

    def shortest(self, row: int) -> int:
        """The shortest length that `truncate` can take a sequence back to, besides 0."""
        return max(
            (shortest_length(int(self._peak[row]), ring) for ring in self._rings), default=0
        )

    def truncate(self, row: int, length: int) -> None:
        """Sequence `row` keeps its first `length` tokens of text."""
        seen = int(self.lengths[row])
        self.check_usable([row])
        if not 0 <= length <= seen:
            raise SessionStateError(
                f"sequence {row} has {seen} tokens and cannot be cut to {length}: "
                f"give a length from 0 to {seen}"
            )
        kept = length if self.landmarks is None else fed_tokens(self.landmarks, length)
        if 0 < kept < self.shortest(row):
            raise SessionStateError(
                f"sequence {row} cannot be cut to {length} tokens: its bounded cache no longer "
                f"has what they see; the spare slots reach back to {self.shortest(row)}"
            )
        self.seen[row] = kept
        if length == 0:
            self._peak[row] = 0

    def slots(self, row: int) -> int:
        """Leading slots that may hold the tokens of sequence `row`."""
        return self.most_slots(int(self._peak[row]))

    def most_slots(self, tokens: int) -> int:
        """Slots in use in the largest cache of a sequence of `tokens` tokens: a ring's stay as
        they are, however long the sequence."""
        return max(slots_in_use(tokens, cache) for cache in self._kinds)

    def most_scores(self, tokens: int) -> int:
        """Scores of one head of a row, in the layer that has most, of a sequence of `tokens`
        tokens."""
        return max(scores_of_row(tokens, cache) for cache in self._kinds)

    def used_slots(self, row: int) -> int:
        """Leading slots of sequence `row` that may hold anything but zeros."""
        return self.most_slots(int(self._used[row]))

    def reset(self, row: int) -> None:
        """The slots of sequence `row` hold zeros."""
        self.seen[row] = self._peak[row] = self._used[row] = 0
        self._lost.discard(row)

    def placing(self, length: int) -> None:
        """Caches of `length` tokens are about to be put in from outside: until `place`, nobody
        knows what is there."""
        self.touched(np.full_like(self.seen, length))
        self._lost.update(range(len(self.seen)))

    def place(self, length: int, given: int) -> None:
        """Every sequence has `length` tokens; of the cache that was put in from outside, `given`
        tokens are there: a ring may lack older ones that its spare slots had room for."""
        self.seen[:] = self._peak[:] = length
        if given < length:
            rings = (ring.sinks + ring_size(ring) - given for ring in self._rings)
            self._peak += max((0, *rings))
        self._lost.clear()

    def copy(self, source: int, target: int) -> None:
        self.check_usable([source])
        self.seen[target], self._peak[target] = self.seen[source], self._peak[source]
        self._used[target] = max(self._used[target], self._peak[source])
        self._lost.discard(target)

    def free_row(self) -> int:
        """The first sequence without tokens."""
        for row, seen in enumerate(self.seen):
            if seen == 0:
                return row
        raise SessionStateError(
            f"all {len(self.seen)} sequences have tokens: name the one to overwrite (to=…), reset "
            "one, or open the session with a larger batch"
        )


def grown_capacity(current: int, needed: int, maximum: int) -> int:
    """Slots a growing cache gets when `needed` do not fit into `current`: a quarter more than
    before, in steps of 256, never more than `maximum`."""
    if needed <= current:
        return current
    wanted = max(needed, int(current * _GROWTH), _FIRST_CAPACITY)
    return min(maximum, -(-wanted // _FIRST_CAPACITY) * _FIRST_CAPACITY)
