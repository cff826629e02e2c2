from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve


@pytest.mark.parametrize(
    ("factor", "base"), [(2, 20221), (4, 40890), (8, 82685), (16, 167199)]
)  # FORMULAS.md, d 128, b 1e4
def test_golden_bases(factor, base, make_shape):
    table = resolve("ntk", make_shape(128), 4096 * factor).table
    assert table.details["base"] == pytest.approx(base, abs=0.5)
    assert float(table.inv_freq[1]) == pytest.approx(base ** (-2 / 128), rel=1e-6)
    assert table.multiplier == 1.0


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1, 2, 8, 512])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_equals_transformers_dynamic_at_factor_one(
    head_dim, factor, share, make_shape, transformers_table, same_table
):
    """With factor 1 the dynamic base at n = s·L is b·s^(d/(d−2)), the static form."""
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share), original=1024)
    expected = transformers_table("dynamic", shape, seq_len=1024 * factor, factor=1.0)
    same_table(resolve("ntk", shape, 1024 * factor).table, expected)


def test_lowest_frequency_is_divided_by_the_factor_and_the_highest_kept(make_shape):
    shape = make_shape(64)
    plain = resolve("none", shape, 4096).table.inv_freq
    scaled = resolve("ntk", shape, 4096, factor=10.0).table.inv_freq
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 10, rel=1e-6)


def test_two_rotated_dimensions_are_refused(make_shape):
    with pytest.raises(UserError, match="rotary dimension above 2"):
        resolve("ntk", make_shape(2), 8192)


def test_an_overflowing_factor_is_refused(make_shape):
    with pytest.raises(UserError, match="overflows: choose a smaller factor"):
        resolve("ntk", make_shape(4), 8192, factor=1e300)
