"""Oracles: transformers' dynamic rope at every length, and the base values of FORMULAS.md."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import find, resolve

LENGTHS = (1, 2, 1023, 1024, 1025, 1026, 2048, 3001, 8192, 131072, 1 << 22)


@pytest.mark.parametrize(("growth", "base"), [(2, 20221), (4, 40890), (8, 82685), (16, 167199)])
def test_golden_base(growth, base, make_shape):
    """With factor 1 the growth at n is n/Lmax."""
    resolved = resolve("dynamic-ntk", make_shape(), 4096 * growth, factor=1.0)
    assert resolved.table.details["growth"] == growth
    assert resolved.table.details["base"] == pytest.approx(base, abs=0.5)
    inv_freq, _ = resolved.length_table.at(4096 * growth)
    assert inv_freq[1] ** -64 == pytest.approx(base, abs=0.5)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("factor", [1.0, 2.0, 7.5, 128.0])
def test_equals_transformers_at_every_length(
    head_dim, share, factor, make_shape, transformers_table, same_values
):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share), original=1024)
    by_length = resolve("dynamic-ntk", shape, 1 << 22, factor=factor).length_table
    for length in LENGTHS:
        expected = transformers_table("dynamic", shape, seq_len=length, factor=factor)
        same_values(by_length.at(length), expected)


@pytest.mark.parametrize("target", [1024, 1025, 131072])
def test_table_is_the_one_at_the_target(target, make_shape, transformers_table, same_table):
    shape = make_shape(64, original=1024)
    resolved = resolve("dynamic-ntk", shape, target, parameters={"factor": 4.0})
    same_table(resolved.table, transformers_table("dynamic", shape, seq_len=target, factor=4.0))


def test_default_factor_reaches_s_squared_minus_s_plus_one(make_shape):
    resolved = resolve("dynamic", make_shape(), 4096 * 8)
    assert resolved.factor == 8.0
    assert resolved.table.details["growth"] == pytest.approx(64 - 8 + 1, rel=1e-12)


def test_growth_begins_at_max_position_embeddings(make_shape):
    shape = make_shape(64, original=1024, maximum=2048)
    by_length = resolve("dynamic-ntk", shape, 8192, factor=4.0).length_table
    assert [by_length.growth(n) for n in (1, 1024, 2048)] == [1.0, 1.0, 1.0]
    assert by_length.growth(2049) == pytest.approx(1 + 4 / 2048, rel=1e-12)


def test_lowest_frequency_is_divided_by_the_growth_and_the_highest_kept(make_shape):
    resolved = resolve("dynamic-ntk", make_shape(), 16384, factor=3.0)
    before, _ = resolved.length_table.at(1)
    after, multiplier = resolved.length_table.at(16384)
    assert after[0] == before[0] == 1.0
    assert before[-1] / after[-1] == pytest.approx(3 * 4 - 2, rel=1e-12)
    assert multiplier == 1.0


def test_alias_dynamic():
    assert find("dynamic") is find("dynamic-ntk")


def test_two_rotary_dimensions_are_refused(make_shape):
    with pytest.raises(UserError, match="dynamic-ntk needs a rotary dimension above 2"):
        resolve("dynamic-ntk", make_shape(2), 8192)


def test_a_factor_that_overflows_is_refused(make_shape):
    with pytest.raises(UserError, match=r"slope of the table by length is 2.44.*e\+296.*finite"):
        resolve("dynamic-ntk", make_shape(64), 8192, factor=1e300)


def test_no_frequency_vanishes_at_the_longest_length(make_shape):
    by_length = resolve("dynamic-ntk", make_shape(), 1 << 24).length_table
    inv_freq, _ = by_length.at(1 << 33)
    assert np.isfinite(inv_freq).all() and (inv_freq > 0).all()
