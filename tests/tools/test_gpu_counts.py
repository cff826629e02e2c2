"""Visible pairs and bytes against rows counted by hand and one by one."""

from __future__ import annotations

import pytest

from tools.gpu.counts import attention_flops, cache_bytes, visible_pairs


def counted(queries, keys, sinks, window):
    return sum(
        j <= i and (window == 0 or j < sinks or i - j < window)
        for i in range(keys - queries, keys)
        for j in range(keys)
    )


@pytest.mark.parametrize(
    ("queries", "keys", "sinks", "window", "pairs"),
    [
        (4, 4, 0, 0, 1 + 2 + 3 + 4),
        (1, 7, 0, 0, 7),
        (2, 5, 0, 0, 4 + 5),
        (5, 5, 0, 2, 1 + 2 + 2 + 2 + 2),
        (6, 6, 1, 2, 1 + 2 + 3 + 3 + 3 + 3),
        (2, 6, 2, 2, 4 + 4),
        (4, 4, 3, 1, 1 + 2 + 3 + 4),
    ],
)
def test_pairs_counted_by_hand(queries, keys, sinks, window, pairs):
    assert visible_pairs(queries, keys, sinks=sinks, window=window) == pairs


@pytest.mark.parametrize("keys", [1, 2, 9, 20])
@pytest.mark.parametrize(("sinks", "window"), [(0, 0), (0, 1), (0, 5), (3, 4), (4, 30), (30, 2)])
def test_pairs_counted_one_by_one(keys, sinks, window):
    for queries in {1, (keys + 1) // 2, keys}:
        found = visible_pairs(queries, keys, sinks=sinks, window=window)
        assert found == counted(queries, keys, sinks, window)


def test_pairs_of_a_long_windowed_prefill_by_the_closed_form():
    n, w, s = 131072, 1020, 4
    closed = w * (w + 1) // 2 + (n - w) * w + s * (n - w) - s * (s - 1) // 2
    assert visible_pairs(n, n, sinks=s, window=w) == closed


def test_operations_and_bytes():
    assert attention_flops(10, head_dim=8, heads=3) == 4 * 8 * 3 * 10
    assert cache_bytes(1024, head_dim=128, kv_heads=8, element_bytes=2) == 4 << 20
