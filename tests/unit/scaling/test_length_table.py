"""The one form of frequencies by length; oracle: values written by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling._length_table import LengthTable


def make(**changes: Any) -> LengthTable:
    rows = {
        "short_frequencies": np.array([1.0, 0.5, 0.1]),
        "long_frequencies": np.array([0.25, 0.125, 1 / 3]),
        "ramp": np.array([0.0, 0.5, 1.0]),
        "exponent": np.array([0.0, -1.0, -0.5]),
    }
    return LengthTable(**{**rows, "threshold": 10.0, **changes})


def test_form_at_a_growth_of_four():
    table = make(slope=0.25, offset=-1.0, short_multiplier=3.0, long_multiplier=2.0, gain=0.1)
    inv_freq, multiplier = table.at(20)
    np.testing.assert_allclose(inv_freq, [0.25, 0.125 * 0.625 / 4, 1 / 3 / 4 / 2], rtol=1e-15)
    assert multiplier == pytest.approx(2 * (1 + 0.1 * math.log(4)), rel=1e-15)
    inv_freq, multiplier = table.at(8)
    np.testing.assert_array_equal(inv_freq, [1.0, 0.5, 0.1])
    assert multiplier == 3.0


@pytest.mark.parametrize(("length", "multiplier"), [(10, 3.0), (11, 2.0)])
def test_the_long_row_begins_past_the_threshold(length, multiplier):
    table = make(short_multiplier=3.0, long_multiplier=2.0)
    assert table.at(length)[1] == multiplier


def test_packed_pairs_add_up_to_48_bits():
    table = make(slope=1 / 3, offset=-math.pi, threshold=float((1 << 40) + 1), gain=0.1)
    tables, scalars = table.packed()
    assert tables.shape == (4, 2, 3) and scalars.shape == (7, 2)
    assert tables.dtype == scalars.dtype == np.float32
    rows = [table.short_frequencies, table.long_frequencies, table.ramp, table.exponent]
    np.testing.assert_allclose(tables.astype(np.float64).sum(1), rows, rtol=2.0**-48, atol=0)
    numbers = [(1 << 40) + 1, 1 / 3, -math.pi, 1.0, 1.0, 0.1, 0.0]
    np.testing.assert_allclose(scalars.astype(np.float64).sum(1), numbers, rtol=2.0**-48, atol=0)
    assert scalars.astype(np.float64).sum(1)[0] == (1 << 40) + 1  # a threshold is exact


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ramp": np.zeros(2)}, r"ramp \[2\].*give all of them F"),
        ({"exponent": np.zeros((3, 1))}, r"exponent \[3, 1\]"),
        ({"short_frequencies": np.zeros((1, 3))}, r"short_frequencies \[1, 3\]"),
        ({"ramp": np.array([0.0, math.nan, 1.0])}, "ramp of the table by length is"),
        ({"slope": math.inf}, "slope of the table by length is inf"),
        ({"long_multiplier": 1e39}, r"long_multiplier of the table by length is 1e\+39"),
    ],
)
def test_what_cannot_be_packed_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
