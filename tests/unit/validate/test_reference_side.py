"""Oracles: rows written by hand."""

from __future__ import annotations

import numpy as np

from ctx_export.validate import reference_side
from ctx_export.validate.positions import make_plan
from ctx_export.validate.reference_side import kept_rows, random_tokens


def test_every_row_of_a_small_vocabulary_is_kept():
    plan = make_plan(64, 1024, 200)
    assert kept_rows(plan, 97).tolist() == list(range(200))


def test_of_a_large_vocabulary_listed_rows_their_neighbours_and_spread_ones_are_kept(monkeypatch):
    monkeypatch.setattr(reference_side, "_LOGIT_BYTES", 100 * 4 * 128000)
    plan = make_plan(512, 100_000, 4096)
    rows = kept_rows(plan, 128000).tolist()
    assert rows == sorted(set(rows))
    near = {0, 1, 2, *range(509, 516), *range(1022, 1027), *range(2046, 2051), 4094, 4095}
    assert near <= set(rows)
    assert len(rows) <= 100 + len(near)
    assert max(np.diff(rows)) <= 42  # 4096 over 99 steps


def test_tokens_are_seeded_and_of_the_vocabulary():
    tokens = random_tokens(5000, 11)
    assert tokens.dtype == np.int64
    assert set(tokens.tolist()) == set(range(11))
    np.testing.assert_array_equal(random_tokens(5000, 11), tokens)
