"""How many tokens queries meet under a cache's rule (FORMULAS sections 3 and 4), as closed sums.

x = position + 1 of a query counts the tokens up to itself. A full cache shows min(x, window) of
them and the sinks before; memory shows sinks, averages and the tokens that are not averaged yet;
landmark shows sinks, chosen blocks and the tokens behind the candidates, and scores every
candidate's representative. self-extend and dual-chunk meet every token once, each at a position of
the rule's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark, Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """Sums over queries: `pairs` with keys whose values are read too, and `scored` with
    representatives of blocks, of which the keys alone are read."""

    pairs: int
    scored: int = 0

    def __add__(self, other: Met) -> Met:
        return Met(pairs=self.pairs + other.pairs, scored=self.scored + other.scored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """The `count` queries at positions `first`, first + step, …"""

    first: int
    step: int = 1
    count: int = 1

    @classmethod
    def every(cls, tokens: int) -> Queries:
        """Of a text of `tokens` tokens each."""
        return cls(first=0, count=tokens)

    @classmethod
    def last_of_calls(cls, tokens: int, chunk: int) -> Queries:
        """The last one of every full call of `chunk` tokens."""
        return cls(first=chunk - 1, step=chunk, count=tokens // chunk)


def met(cache: CacheInfo, queries: Queries) -> Met:
    """What `queries` meet in a layer with that cache, summed; positions count what the model is
    fed, landmark tokens among it."""
    upto = _Steps(first=queries.first + 1, step=queries.step, count=queries.count)
    rule = cache.parameters
    if isinstance(rule, Memory | Landmark):
        near, behind = upto.split(cache.sinks + cache.window)
        after = behind.less(cache.sinks + cache.window)
        # Blocks are whole ones behind the window: `after` // block of them.
        tokens = near.total() + after.count * (cache.sinks + cache.window)
        tokens += after.total() - rule.block * after.floors(rule.block)
        if isinstance(rule, Memory):
            return Met(pairs=tokens + after.floors(rule.block, rule.memory))
        chosen = rule.block * after.floors(rule.block, rule.topk)
        return Met(pairs=tokens + chosen, scored=after.floors(rule.block))
    if not cache.window:
        return Met(pairs=upto.total())
    behind = upto.split(cache.window)[1].less(cache.window)
    return Met(pairs=upto.total() - behind.total() + behind.floors(1, cache.sinks))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """The whole numbers first, first + step, … , `count` of them, none negative."""

    first: int
    step: int
    count: int

    def split(self, limit: int) -> tuple[_Steps, _Steps]:
        """Those up to `limit`, and those above it."""
        below = 0 if limit < self.first else (limit - self.first) // self.step + 1
        below = min(below, self.count)
        start = self.first + below * self.step
        return (
            _Steps(first=self.first, step=self.step, count=below),
            _Steps(first=start, step=self.step, count=self.count - below),
        )

    def less(self, amount: int) -> _Steps:
        return _Steps(first=self.first - amount, step=self.step, count=self.count)

    def total(self) -> int:
        return self.count * self.first + self.step * (self.count * (self.count - 1) // 2)

    def floors(self, block: int, most: int | None = None) -> int:
        """The sum of each number divided by `block`, rounded down, `most` at most."""
        if most is not None:
            small, large = self.split(most * block)
            return small.floors(block) + large.count * most
        return _floor_sum(self.count, block, self.step, self.first)


def _floor_sum(count: int, divisor: int, slope: int, start: int) -> int:
    """Σ ⌊(slope·i + start) / divisor⌋ over i < count, by the Euclidean algorithm on lattice
    points."""
    found = 0
    while count:
        found += count * (count - 1) // 2 * (slope // divisor) + count * (start // divisor)
        slope, start = slope % divisor, start % divisor
        highest = slope * count + start
        count, start = divmod(highest, divisor)
        divisor, slope = slope, divisor
        if not divisor:
            break
    return found
