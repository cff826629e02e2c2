"""A cache put in from outside: rows of tokens into their slots, and averages of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import BOUNDED, CacheInfo
from ctx_export.core.rules import Landmark, Memory
from ctx_export.runtime.backend import Ints
from ctx_export.runtime.slots import average_slots, cache_slots, held_tokens, ring_size

Placed = tuple[Ints, NDArray[Any], NDArray[Any]]  # slots [n], keys and values [B,H,n,D]


def needed_rows(length: int, cache: CacheInfo) -> int:
    """The fewest rows that say what a cache holds after `length` tokens."""
    if isinstance(cache.parameters, Memory):
        return len(held_tokens(length, cache))
    return min(length, cache.sinks + cache.window) if cache.policy == BOUNDED else length


def placed(
    keys: NDArray[Any], values: NDArray[Any], length: int, cache: CacheInfo
) -> Iterator[Placed]:
    """Where to put rows [B,H,P,D] of a sequence of `length` tokens: its first `sinks` and its
    newest ones."""
    given = keys.shape[2]
    rows = np.arange(given, dtype=np.int64)
    tokens = np.where(rows < cache.sinks, rows, rows + length - given)
    blocks, slots = average_slots(length, cache)
    if len(blocks):
        rule = cache.parameters
        assert isinstance(rule, Memory | Landmark)
        first = cache.sinks + blocks * rule.block - (length - given)
        members = first[:, None] + np.arange(rule.block)
        means = [
            part[:, :, members].mean(axis=3, dtype=np.float64).astype(np.float32)
            for part in (keys, values)
        ]
        if isinstance(rule, Landmark):
            means[1][:] = 0  # only the key stands for a block
        yield slots, means[0], means[1]
    if cache.policy == BOUNDED:
        kept = (tokens < cache.sinks) | (tokens >= length - ring_size(cache))
        rows, tokens = rows[kept], tokens[kept]
    yield cache_slots(tokens, cache), keys[:, :, rows], values[:, :, rows]
