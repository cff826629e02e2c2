"""Feeding sequences to a session in every kind of split, and the error of what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export.runtime.session import Session, open_session


def opened(package: Path, **options: Any) -> Session:
    return open_session(package, threads=1, **options)


def fed(session: Session, ids: np.ndarray, pieces: Sequence[int]) -> np.ndarray:
    """Logits [N,V] of one sequence fed in `pieces`; the last one is what is left.

    Its whole length is planned, as a single forward over it would have it.
    """
    session.reset()
    ends = [*np.cumsum(pieces), len(ids)]
    parts = [session.feed(ids[None, a:b], len(ids))[0] for a, b in pairwise([0, *ends])]
    return np.concatenate(parts)


def decode_pieces(length: int, border: int) -> list[int]:
    """Prefill, one token a call across position `border` and again up to the end; without tokens
    beyond the border, one token a call through the second half."""
    if length <= border:
        return [length // 2, *[1] * (length - length // 2 - 1)]
    return [border - 4, *[1] * 8, length - border - 14, *[1] * 9]


def fed_raggedly(session: Session, rows: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Logits [N,V] of three rows of tokens, all fed together and each in pieces of its own; each
    row's length is planned."""
    plans = ((60, 1, 0, 100, 200), (9, 1, 40, 1, 200), (1, 1, 70, 0, 200))
    done = np.zeros(len(lengths), np.int64)
    parts: list[list[np.ndarray]] = [[] for _ in lengths]
    for wanted in zip(*plans, strict=True):
        counts = np.minimum(wanted, np.asarray(lengths) - done)
        ids = np.zeros((len(lengths), max(counts.max(), 1)), np.int64)
        for row, count in enumerate(counts):
            ids[row, :count] = rows[row, done[row] : done[row] + count]
        logits = session.feed(ids, list(lengths), lengths=counts.tolist())
        for row, count in enumerate(counts):
            parts[row].append(logits[row, :count])
        done += counts
    return [np.concatenate(part) for part in parts]


def error(logits: np.ndarray, reference: np.ndarray) -> float:
    """max |logits - reference| relative to max |reference|, after checking what they are."""
    assert logits.shape == reference.shape and logits.dtype == reference.dtype == np.float32
    assert np.isfinite(logits).all() and np.isfinite(reference).all()
    return float(np.abs(logits - reference).max() / np.abs(reference).max())
