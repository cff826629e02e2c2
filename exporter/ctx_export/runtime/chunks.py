"""Cutting a feed into calls: right-padded chunks of ragged rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ctx_export.runtime.backend import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Columns start … start + width - 1 of a feed; row b has `new[b]` tokens in them."""

    start: int
    width: int
    new: Ints  # [B]

    @property
    def last_rows(self) -> Ints:
        """Row of each sequence's last token in this chunk [B,1]; 0 where it has none."""
        return np.maximum(self.new - 1, 0)[:, None]

    @property
    def all_rows(self) -> Ints:
        """Every row of the chunk [B,S]."""
        return np.tile(np.arange(self.width, dtype=np.int64), (len(self.new), 1))


def chunks(
    lengths: Ints, seen: Ints, max_chunk: int, limit: Callable[[int], int]
) -> Iterator[Chunk]:
    """Chunks that cover `lengths` [B] tokens after `seen` [B], each at most `max_chunk` wide and
    at most what `limit(tokens)` allows for the longest sequence at its end."""
    start, longest = 0, int(lengths.max(initial=0))
    while start < longest:
        width = min(max_chunk, longest - start)
        tokens = int((seen + np.minimum(lengths, start + width)).max())
        width = max(1, min(width, limit(tokens)))
        yield Chunk(start=start, width=width, new=np.clip(lengths - start, 0, width))
        start += width
