"""Closed sums against every query and key counted one by one by FORMULAS section 3."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ctx_export.core.manifest import BOUNDED, FULL, CacheInfo
from ctx_export.core.rules import DualChunk, Landmark, Memory, Rule, SelfExtend
from ctx_export.planning.seen import Met, Queries, met


def cache(*, sinks: int = 0, window: int = 0, rule: Rule | None = None) -> CacheInfo:
    return CacheInfo(
        policy=BOUNDED if window and not isinstance(rule, Landmark) else FULL,
        sinks=sinks,
        window=window,
        capacity=1 << 20,
        keys="rotated",
        parameters=rule,
    )


def windowed(i: int, sinks: int, window: int) -> tuple[int, int]:
    """Keys j ≤ i with j < sinks or i - j < window."""
    return sum(1 for j in range(i + 1) if not window or j < sinks or i - j < window), 0


def memory(i: int, sinks: int, window: int, rule: Memory) -> tuple[int, int]:
    """e = max(0, i + 1 - sinks - window), P = e // block; sinks, min(P, M) averages, and the
    tokens from sinks + P·block to i."""
    pooled = max(0, i + 1 - sinks - window) // rule.block
    tokens = sum(1 for j in range(i + 1) if j < sinks or j >= sinks + pooled * rule.block)
    return tokens + min(pooled, rule.memory), 0


def landmark(i: int, sinks: int, window: int, rule: Landmark) -> tuple[int, int]:
    """Candidates are the blocks whose last token is at most i - window; k of them are read, and
    all tokens behind the candidates."""
    n = 0
    while sinks + (n + 1) * rule.block - 1 <= i - window:
        n += 1
    behind = sum(1 for j in range(i + 1) if j < sinks or j >= sinks + n * rule.block)
    return behind + min(n, rule.topk) * rule.block, n


CASES: dict[str, tuple[CacheInfo, Callable[[int], tuple[int, int]]]] = {}
for s, w in ((0, 0), (0, 1), (0, 7), (3, 5), (4, 1), (9, 2), (1, 200)):
    CASES[f"window {s} {w}"] = (
        cache(sinks=s, window=w),
        lambda i, s=s, w=w: windowed(i, s, w),  # type: ignore[misc]
    )
for s, w, block, count in ((0, 1, 1, 1), (2, 5, 3, 4), (4, 7, 8, 2), (1, 30, 5, 100)):
    averages = Memory(memory=count, block=block, memory_slots=count + 3)
    CASES[f"memory {s} {w} {block} {count}"] = (
        cache(sinks=s, window=w, rule=averages),
        lambda i, s=s, w=w, r=averages: memory(i, s, w, r),  # type: ignore[misc]
    )
    blocks = Landmark(block=block, topk=count, shared=False, token=None)
    CASES[f"landmark {s} {w} {block} {count}"] = (
        cache(sinks=s, window=w, rule=blocks),
        lambda i, s=s, w=w, r=blocks: landmark(i, s, w, r),  # type: ignore[misc]
    )
for every in (SelfExtend(group=4, neighbor=8), DualChunk(chunk=5, reach=8)):
    CASES[type(every).__name__] = (cache(rule=every), lambda i: windowed(i, 0, 0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "queries",
    [
        Queries.every(1),
        Queries.every(97),
        Queries(first=96),
        Queries.last_of_calls(97, 7),
        Queries.last_of_calls(96, 8),
        Queries.last_of_calls(5, 8),
        Queries(first=13, step=29, count=5),
    ],
    ids=str,
)
def test_sums_are_those_of_the_definition(name: str, queries: Queries) -> None:
    layer, defined = CASES[name]
    positions = range(queries.first, queries.first + queries.step * queries.count, queries.step)
    counts = [defined(position) for position in positions]
    expected = Met(pairs=sum(p for p, _ in counts), scored=sum(n for _, n in counts))
    assert met(layer, queries) == expected


def test_formulas_own_count_of_a_window_with_sinks() -> None:
    """FORMULAS section 4: P = W(W+1)/2 + (N−W)·W + S(N−W) − S(S−1)/2."""
    n, w, s = 131072, 4092, 4
    pairs = w * (w + 1) // 2 + (n - w) * w + s * (n - w) - s * (s - 1) // 2
    assert met(cache(sinks=s, window=w), Queries.every(n)).pairs == pairs


def test_lengths_of_any_size_take_no_time() -> None:
    n = 1 << 60
    assert met(cache(), Queries.every(n)).pairs == n * (n + 1) // 2
    rule = Landmark(block=64, topk=32, shared=False, token=None)
    layer = cache(sinks=4, window=100, rule=rule)
    ends = met(layer, Queries(first=n - 1))
    assert ends.scored == (n - 104) // 64
    assert met(layer, Queries.last_of_calls(n, 1024)).scored > n // 1024
