"""What a session asks of a runtime. Backends move bytes; every rule is the session's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of the model, S right-padded rows of each of B sequences."""

    input_ids: Ints  # [B,S]
    seen: Ints  # [B]
    new: Ints  # [B], 0 … S
    logit_rows: Ints  # [B,R], rows of the call
    rope_length: Ints | None = None  # [B], where the package has that input


class Backend(Protocol):
    """A loaded model and its caches for a fixed number of sequences."""

    def chunk_limit(self, scores: int) -> int:
        """Most rows of one call that this runtime can afford where a row has `scores` scores a
        head, at least 1. The package's max_chunk is the session's to hold."""

    def grow(self, capacity: int) -> None:
        """Give the growing caches `capacity` slots and keep what they hold; the others are made
        at their fixed size by the first call. New slots hold zeros. Raises UserError, with the
        caches as they were, where there is not enough memory."""

    def step(self, step: Step) -> Floats:
        """Logits [B,R,V] of the rows asked for; the caches hold the new tokens afterwards."""

    def copy_row(self, source: int, target: int, slots: int) -> None:
        """Sequence `target` gets the first `slots` slots of every cache of sequence `source`."""

    def zero(self, row: int, slots: int) -> None:
        """Fill the first `slots` slots of every cache of sequence `row` with zeros."""

    def write(self, layer: int, slots: Ints, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Put keys and values [B,Hkv,P,D] into `slots` [P] of `layer`."""

    def read(self, layer: int) -> tuple[Floats, Floats]:
        """Keys and values of `layer`, [B,Hkv,C,D]."""

    @property
    def cache_bytes(self) -> int:
        """Memory that the caches take now."""

    def close(self) -> None:
        """Release everything; further calls are errors of the caller."""
