"""What an attention has to do: visible pairs, floating-point operations, bytes."""

from __future__ import annotations


def visible_pairs(queries: int, keys: int, *, sinks: int = 0, window: int = 0) -> int:
    """(query, key) pairs of the last `queries` of `keys` tokens, causal; window 0 is unlimited.

    Query i sees key j iff j ≤ i and (j < sinks or i − j < window).
    """
    return _all_pairs(keys, sinks, window) - _all_pairs(keys - queries, sinks, window)


def attention_flops(pairs: int, *, head_dim: int, heads: int) -> int:
    """Both products, a multiplication and an addition for each element."""
    return 4 * head_dim * heads * pairs


def cache_bytes(slots: int, *, head_dim: int, kv_heads: int, element_bytes: int) -> int:
    """Keys and values of one sequence, which a decode step must read."""
    return 2 * element_bytes * head_dim * kv_heads * slots


def _all_pairs(tokens: int, sinks: int, window: int) -> int:
    if window == 0:
        return _capped_sum(tokens, tokens)
    return _capped_sum(tokens, window) + _capped_sum(max(0, tokens - window), sinks)


def _capped_sum(count: int, cap: int) -> int:
    """min(1, cap) + … + min(count, cap)."""
    rising = min(count, cap)
    return rising * (rising + 1) // 2 + (count - rising) * cap
