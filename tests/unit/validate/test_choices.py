"""Oracles: rows written by hand, and scores computed in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark, SelfExtend
from ctx_export.validate.choices import clear_keys, decided
from ctx_export.validate.synthetic import round_to

INF = np.inf
HEADS, DIM, WINDOW, SINKS = 2, 16, 9, 3


def info(block: int, topk: int, token: int | None) -> CacheInfo:
    return CacheInfo(
        policy="full",
        rule="landmark",
        sinks=SINKS,
        window=WINDOW,
        capacity=4096,
        keys="unrotated",
        parameters=Landmark(block=block, topk=topk, shared=False, token=token),
    )


def drawn(tokens: int, precision: str = "fp32") -> np.ndarray:
    keys = np.random.default_rng(2).standard_normal((1, HEADS, tokens, DIM))
    return round_to((keys * np.linspace(0.1, 4, DIM)).astype(np.float32), precision)


def representatives(keys: np.ndarray, block: int, trained: bool) -> np.ndarray:
    """[H,n,D] of the whole blocks after the sinks."""
    count = (keys.shape[2] - SINKS) // block
    groups = keys[0, :, SINKS : SINKS + count * block].astype(np.float64)
    groups = groups.reshape(HEADS, count, block, DIM)
    return groups[:, :, -1] if trained else groups.mean(axis=2)


@pytest.mark.parametrize(
    ("precision", "margins", "expected"),
    [
        ("fp32", [INF, 1, 1e-5, 3e-6], [1, 1, 1, 1]),
        # A close choice, one in twenty before it, two in twenty.
        ("fp32", [1.0] * 20 + [1e-6, 1.0], [1] * 20 + [0, 1]),
        ("fp32", [1.0] * 20 + [1e-6, 1e-6, 1.0], [1] * 20 + [0, 0, 0]),
        # Equal keys: whatever follows reads that token.
        ("fp32", [1.0] * 40 + [0.0, 1.0], [1] * 40 + [0, 0]),
        ("fp16", [INF, 0.1, 1e-2, 1.0], [1, 1, 0, 0]),
        ("fp16", [1.0] * 40 + [1e-2, 1.0], [1] * 40 + [0, 0]),
        ("bf16", [INF, 0.2, 0.1, 1.0], [1, 1, 0, 0]),
    ],
)
def test_rows_are_compared_where_rounding_turns_nothing_that_they_read(
    precision, margins, expected
):
    assert decided(np.array(margins), precision).astype(int).tolist() == expected


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("block", "topk"), [(2, 5), (7, 3), (16, 1), (64, 2)])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.05), ("fp16", 0.05), ("bf16", 0.04)])
def test_any_query_chooses_the_same_half_of_the_standing_blocks(
    block, topk, trained, precision, least
):
    tokens = SINKS + WINDOW + (3 * topk + 4) * block
    cache = info(block, topk, 9 if trained else None)
    keys = clear_keys(drawn(tokens, precision), cache, precision)
    np.testing.assert_array_equal(keys, round_to(keys, precision))
    candidates = (tokens + 1 - SINKS - WINDOW) // block
    stands = representatives(keys, block, trained)[:, : candidates - topk - 1]
    queries = np.random.default_rng(1).standard_normal((HEADS, 50, DIM))
    scores = queries @ stands.transpose(0, 2, 1)
    ranked = np.sort(scores, axis=-1)[..., ::-1]
    gap = ranked[..., topk - 1] - ranked[..., topk]
    # The weakest of the chosen stands 1 where the strongest of all stands 1.5.
    assert (gap / np.abs(scores).max(axis=-1) > 0.6).mean() > 0.85
    assert (gap > 0).mean() > 0.95
    chosen = np.sort(np.argsort(-scores, axis=-1)[..., :topk], axis=-1)
    assert len(np.unique(chosen[gap > least * np.abs(scores).max(-1)], axis=0)) == 2


@pytest.mark.parametrize("trained", [False, True])
def test_only_candidates_move(trained):
    block, topk, tokens = 7, 3, 200
    given = drawn(tokens)
    keys = clear_keys(given, info(block, topk, 9 if trained else None), "fp32")
    candidates = (tokens + 1 - SINKS - WINDOW) // block
    end = SINKS + candidates * block
    np.testing.assert_array_equal(keys[:, :, :SINKS], given[:, :, :SINKS])
    np.testing.assert_array_equal(keys[:, :, end:], given[:, :, end:])
    moved = (keys != given).any(axis=(0, 1, 3))[SINKS:end].reshape(candidates, block)
    assert moved.mean(axis=0).tolist() == ([0] * 6 + [1] if trained else [1] * 7)
    # Within a block the keys keep their differences.
    inner = np.diff(keys[:, :, SINKS : SINKS + 6], axis=2)
    np.testing.assert_allclose(inner, np.diff(given[:, :, SINKS : SINKS + 6], axis=2), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, SINKS + WINDOW, SINKS + WINDOW + 9 * 7])
def test_where_few_blocks_are_left_out_keys_stay_as_they_are(tokens):
    given = drawn(tokens)
    assert clear_keys(given, info(7, 3, None), "fp32") is given


def test_other_rules_keep_their_keys():
    rule = SelfExtend(group=2, neighbor=4)
    cache = CacheInfo(
        policy="full", sinks=0, window=0, capacity=500, keys="unrotated", parameters=rule
    )
    given = drawn(400)
    assert clear_keys(given, cache, "fp32") is given
