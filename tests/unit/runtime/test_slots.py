"""Slots of the caches that hold more than tokens; oracle: slots filled one token at a time."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark, Memory
from ctx_export.runtime.slots import cache_slots, ring_size, shortest_length, slots_in_use


def landmark(block: int, sinks: int, token: int | None = None) -> CacheInfo:
    rule = Landmark(block=block, topk=1, shared=False, token=token)
    return CacheInfo(
        policy="full",
        rule="landmark",
        sinks=sinks,
        window=3,
        capacity=rule.slots(sinks, 100),
        keys="unrotated",
        parameters=rule,
    )


def memory(block: int, count: int, sinks: int, window: int, max_chunk: int) -> CacheInfo:
    rule = Memory(memory=count, block=block, memory_slots=count + -(-max_chunk // block))
    return CacheInfo(
        policy="bounded",
        rule="memory",
        sinks=sinks,
        window=window,
        capacity=rule.capacity(sinks, window, max_chunk),
        keys="unrotated",
        parameters=rule,
    )


@pytest.mark.parametrize("block", [1, 7, 16])
@pytest.mark.parametrize("sinks", [0, 4])
def test_a_landmark_s_mean_follows_its_block(block, sinks):
    cache = landmark(block, sinks)
    slots: list[object] = []
    for token in range(100):
        slots.append(token)
        if token >= sinks and (token - sinks + 1) % block == 0:
            slots.append("mean")
    found = cache_slots(np.arange(100), cache)
    assert [slots.index(token) for token in range(100)] == found.tolist()
    assert cache.capacity >= len(slots)
    for length in (0, 1, sinks, sinks + 1, sinks + block, 99, 100):
        assert slots_in_use(length, cache) >= len(
            slots[: slots.index(length)] if length < 100 else slots
        )


def test_landmark_tokens_have_slots_like_others():
    cache = landmark(7, 4, token=9)
    assert cache_slots(np.arange(100), cache).tolist() == list(range(100))
    assert slots_in_use(30, cache) == 30


@pytest.mark.parametrize("block", [1, 3, 7])
@pytest.mark.parametrize("sinks", [0, 4])
def test_memory_serves_every_length_that_it_names_and_no_shorter_one(block, sinks):
    """Slots written as the operator's contract says; a length is served if all that the next
    token sees, and all that blocks are averaged from, is there."""
    count, window, chunk = 3, 5, 4
    cache = memory(block, count, sinks, window, chunk)
    rule = cache.parameters
    assert ring_size(cache) == window + block - 1 + chunk - 1

    def blocks(query: int) -> int:
        return max(0, query + 1 - sinks - window) // block

    for peak in range(1, 120):
        held: dict[int, object] = {}
        slots = cache_slots(np.arange(peak), cache).tolist()
        for token in range(peak):
            # As after calls of one token: pooled before the token is written.
            for done in range(blocks(token - 1) if token else 0, blocks(token)):
                held[sinks + done % rule.memory_slots] = f"block {done}"
            held[slots[token]] = token
        there = set(held.values())

        def served(length: int, there: set[object] = there) -> bool:
            newest = blocks(length)
            wanted = {f"block {m}" for m in range(max(0, newest - count), blocks(length - 1))}
            wanted |= set(range(min(sinks, length)))
            wanted |= set(range(sinks + blocks(length - 1) * block, length))
            return wanted <= there

        shortest = shortest_length(peak, cache)
        assert shortest <= max(0, peak - chunk + 1)
        assert all(served(length) for length in range(max(1, shortest), peak + 1))
        assert shortest == 0 or not served(shortest - 1), (peak, shortest)
        assert slots_in_use(peak, cache) > max(held)
