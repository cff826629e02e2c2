"""Oracles: rows written by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ctx_export.validate.rows import merged
from tests.unit.validate.rows_by_hand import SEVERAL, row

NAN, INF = math.nan, math.inf


def test_merged_rows_take_the_worst():
    one = row(8, max_error=4e-4, limit=1e-3, mean_error=9e-5, transformers=1e-2)
    two = row(8, how="decode", max_error=3e-4, limit=5e-4, own_table=5e-3, peer=1e-4)
    (found,) = merged([one, two])
    # 3/5 of its limit is nearer than 4/10; the mean is the larger one.
    assert found == replace(two, how="prefill, decode", mean_error=9e-5)
    (found,) = merged([one, replace(two, max_error=INF), row(8, how="chunks")])
    assert (found.max_error, found.how) == (INF, "prefill, decode, chunks")
    assert not found.passed


@pytest.mark.parametrize(
    "group",
    [
        # The largest mean error is within its own limit, beyond that of the largest maximum.
        [
            row(0, 9, max_error=9e-4, mean_error=1e-5, mean_limit=2e-5),
            row(0, 9, mean_error=4e-5, mean_limit=5e-5),
        ],
        # Only the smaller mean error is beyond its limit.
        [row(0, 9, mean_error=4e-5, mean_limit=5e-5), row(0, 9, mean_error=3e-5, mean_limit=2e-5)],
        [row(0, 9), row(0, 9, max_error=NAN, mean_error=NAN)],
        [row(0, 9, max_error=NAN, mean_error=NAN), row(0, 9)],
        [row(0, 9), row(0, 9, max_error=2e-3)],
    ],
)
def test_merged_rows_pass_if_all_of_them_do(group):
    (found,) = merged(group)
    assert found.passed is all(one.passed for one in group)


def test_merging_keeps_rows_of_other_positions_apart():
    order = [(found.position, found.last, found.how) for found in merged(reversed(SEVERAL))]
    assert order == [
        (0, 0, "decode, prefill"),
        (255, 255, "decode, prefill"),
        (1023, 1023, "probe"),
        (0, 511, "prefill"),
        (0, 511, "decode of 9 rows"),
        (1008, 1023, "probe"),
    ]
