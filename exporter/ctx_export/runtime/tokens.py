"""Checks of what a caller feeds: token ids, row lengths and planned lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ctx_export.core.errors import UserError
from ctx_export.runtime.backend import Ints
from ctx_export.runtime.contract import Contract


def token_array(token_ids: ArrayLike, batch: int, vocab: int) -> Ints:
    """`token_ids` as int64 [B,N]; one-dimensional ids are one sequence.

    Raises UserError for anything but integers of the vocabulary, padding included.
    """
    try:
        ids = np.asarray(token_ids)
    except ValueError:
        raise UserError(
            "token_ids has rows of different length: pad them and say how long each is with "
            "lengths="
        ) from None
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or len(ids) != batch:
        raise UserError(
            f"token_ids has the shape {list(ids.shape)}: the session takes [{batch}, tokens]"
        )
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"token_ids has the type {ids.dtype}: token ids are integers")
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise UserError(
            f"token id {int(wrong[0])} is outside of the vocabulary: ids are 0 to {vocab - 1}"
        )
    return ids.astype(np.int64)


def feed_lengths(lengths: Sequence[int] | None, ids: Ints) -> Ints:
    """Tokens of every row [B] of `ids` [B,N]; raises UserError for lengths that do not fit."""
    batch, width = ids.shape
    if lengths is None:
        return np.full(batch, width, np.int64)
    counts = np.asarray(lengths)
    if counts.shape != (batch,) or not np.issubdtype(counts.dtype, np.integer):
        raise UserError(f"lengths is {lengths!r}: give {batch} whole numbers, one per sequence")
    if (counts < 0).any() or (counts > width).any():
        raise UserError(f"lengths is {list(map(int, counts))}: rows have 0 to {width} tokens")
    return counts.astype(np.int64)


def rope_lengths(
    planned: int | Sequence[int] | None, seen: Ints, counts: Ints, contract: Contract
) -> Ints | None:
    """The rope length of every sequence [B], fixed for a whole feed; None where the package has no
    such input. Raises UserError for a plan shorter than what is fed or beyond the maximum."""
    totals = seen + counts
    lengths = np.maximum(totals, 1)
    if planned is not None:
        given = np.broadcast_to(np.asarray(planned), totals.shape)
        if not np.issubdtype(given.dtype, np.integer):
            raise UserError(f"planned_length is {planned!r}: give a number of tokens")
        short = np.flatnonzero((given < totals) & (counts > 0))
        if short.size:
            row = int(short[0])
            raise UserError(
                f"planned_length {int(given[row])} is less than the {int(totals[row])} tokens "
                f"that sequence {row} has after this feed"
            )
        if contract.max_context is not None and int(given.max()) > contract.max_context:
            raise UserError(
                f"planned_length {int(given.max())} is beyond the package's maximum context of "
                f"{contract.max_context}"
            )
        lengths = np.maximum(given, 1).astype(np.int64)
    return lengths if contract.rope_length is not None else None
