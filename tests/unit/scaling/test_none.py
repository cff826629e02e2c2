from __future__ import annotations

import math

import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_plain_frequencies_equal_transformers(
    head_dim, share, make_shape, transformers_table, same_table
):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share), theta=5e5)
    resolved = resolve("none", shape, 4096)
    same_table(resolved.table, transformers_table("linear", shape, factor=1.0))
    assert resolved.factor == 1.0


def test_rows_written_by_hand(make_shape):
    table = resolve("none", make_shape(8, theta=10000.0), 4096).table
    assert table.inv_freq.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-7)
    assert table.multiplier == 1.0


def test_partial_rotation_divides_the_exponent_by_the_rotary_dimension(make_shape):
    table = resolve("none", make_shape(80, rotary_dim=20), 4096).table
    assert len(table.inv_freq) == 10
    assert table.inv_freq[-1] == pytest.approx(math.exp(-18 / 20 * math.log(1e4)), rel=1e-6)


def test_a_factor_is_refused(make_shape):
    with pytest.raises(UserError, match="method none takes no factor"):
        resolve("none", make_shape(), 8192, factor=2.0)
