"""Where the tokens of a sequence lie in a layer's cache (FORMULAS section 3)."""

from __future__ import annotations

import numpy as np

from ctx_export.core.manifest import BOUNDED, CacheInfo
from ctx_export.core.rules import DualChunk, Landmark, Memory, SelfExtend
from ctx_export.runtime.backend import Ints


def cache_slots(tokens: Ints, cache: CacheInfo) -> Ints:
    """Slot of every token position in `tokens`."""
    rule, sinks = cache.parameters, cache.sinks
    after = tokens - sinks
    if isinstance(rule, Landmark) and rule.token is None:
        later = sinks + after + after // rule.block
    elif cache.policy == BOUNDED:
        fixed = _fixed(cache)
        later = fixed + after % (cache.capacity - fixed)
    else:
        return tokens
    return np.where(tokens < sinks, tokens, later)


def ring_size(cache: CacheInfo) -> int:
    """Tokens after the sinks that a bounded cache holds."""
    return cache.capacity - _fixed(cache)


def held_tokens(length: int, cache: CacheInfo) -> Ints:
    """Positions of the first `length` tokens that a cache keeps, or keeps averages of."""
    if cache.policy != BOUNDED:
        return np.arange(length)
    rule, sinks = cache.parameters, cache.sinks
    oldest = length - ring_size(cache)
    if isinstance(rule, Memory):
        averaged = max(0, length - sinks - cache.window) // rule.block
        oldest = min(oldest, sinks + max(0, averaged - rule.memory_slots) * rule.block)
    first = np.arange(min(sinks, length))
    return np.concatenate([first, np.arange(max(sinks, oldest), max(sinks, length))])


def average_slots(length: int, cache: CacheInfo) -> tuple[Ints, Ints]:
    """Blocks of a sequence of `length` tokens whose averages a cache keeps, and their slots."""
    rule, sinks = cache.parameters, cache.sinks
    if isinstance(rule, Memory):
        end = max(0, length - sinks - cache.window) // rule.block
        blocks = np.arange(max(0, end - rule.memory_slots), end)
        return blocks, sinks + blocks % rule.memory_slots
    if isinstance(rule, Landmark) and rule.token is None:
        blocks = np.arange(max(0, length - sinks) // rule.block)
        return blocks, sinks + blocks * (rule.block + 1) + rule.block
    return np.arange(0), np.arange(0)


def slots_in_use(tokens: int, cache: CacheInfo) -> int:
    """Leading slots that a sequence of `tokens` tokens may have written."""
    rule = cache.parameters
    if isinstance(rule, Landmark):
        tokens = rule.slots(cache.sinks, tokens)
    elif isinstance(rule, Memory) and tokens > cache.sinks:
        tokens += rule.memory_slots
    return min(tokens, cache.capacity)


def scores_of_row(tokens: int, cache: CacheInfo) -> int:
    """Scores that a head of one row has at once, where a sequence has `tokens` tokens."""
    slots, rule = slots_in_use(tokens, cache), cache.parameters
    if isinstance(rule, Landmark):
        read = cache.sinks + (rule.topk + 1) * rule.block + cache.window
        return min(slots, tokens // rule.block + read)
    if isinstance(rule, SelfExtend):
        return 2 * slots
    return 3 * slots if isinstance(rule, DualChunk | Memory) else slots


def shortest_length(peak: int, cache: CacheInfo) -> int:
    """The shortest length besides 0 that a bounded cache, once it has had `peak` tokens, still
    serves: it has all that the next token sees and what its blocks are averaged from."""
    overwritten = peak - 1 - ring_size(cache)  # newest token whose slot was taken
    if overwritten < cache.sinks:
        return 0
    rule = cache.parameters
    if not isinstance(rule, Memory):
        # The next token, at position n, sees the tokens after n - window.
        return overwritten + cache.window
    behind = cache.sinks + cache.window
    # Of n tokens, max(0, n - behind) // block blocks are averages; the others are tokens still.
    by_ring = -(-(overwritten + 1 - cache.sinks) // rule.block)
    by_memory = max(0, peak - behind) // rule.block - (rule.memory_slots - rule.memory)
    return max(behind + by_ring * rule.block, behind - 1 + by_memory * rule.block)


def _fixed(cache: CacheInfo) -> int:
    """Slots before the ring of a bounded cache."""
    rule = cache.parameters
    return cache.sinks + (rule.memory_slots if isinstance(rule, Memory) else 0)
