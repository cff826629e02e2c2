"""RotaryFrequencies' body in a stock onnxruntime; oracle: ops.reference in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.ops.reference import rotary_frequencies as reference
from tests.support.frequencies import LENGTHS, TABLES, run_body, wide_table


@pytest.mark.parametrize("name", TABLES)
def test_body_matches_float64(name):
    tables, scalars = TABLES[name]().packed()
    lengths = np.array(LENGTHS)
    inv_freq, multiplier = run_body(lengths, tables, scalars)
    expected, expected_multiplier = reference(lengths, tables, scalars)
    assert inv_freq.dtype == multiplier.dtype == np.float32
    assert inv_freq.shape == expected.shape and multiplier.shape == (len(LENGTHS),)
    # One rounding to float32 is half a unit in the last place, 2^-24.
    np.testing.assert_allclose(inv_freq, expected, rtol=2.0**-24 * 1.000001, atol=0)
    np.testing.assert_allclose(multiplier, expected_multiplier, rtol=2.0**-24 * 1.000001, atol=0)


@pytest.mark.parametrize("name", TABLES)
def test_reference_matches_the_table_that_was_packed(name):
    """The operator's pairs keep 48 bits, of which the difference in g loses 4 at most."""
    table = TABLES[name]()
    inv_freq, multiplier = reference(np.array(LENGTHS), *table.packed())
    for row, length in enumerate(LENGTHS):
        expected, expected_multiplier = table.at(length)
        np.testing.assert_allclose(inv_freq[row], expected, rtol=2.0**-44, atol=0)
        assert multiplier[row] == pytest.approx(expected_multiplier, rel=2.0**-44)


@pytest.mark.parametrize("threshold", [(1 << 24) + 1, (1 << 40) + 1])
def test_the_switch_is_exact_past_float32(threshold):
    tables, scalars = wide_table(threshold).packed()
    _, multiplier = run_body(np.array([threshold - 1, threshold, threshold + 1]), tables, scalars)
    np.testing.assert_array_equal(multiplier, [1.0, 1.0, 2.0])


@pytest.mark.parametrize("name", TABLES)
def test_one_row_is_that_of_a_batch(name):
    packed = TABLES[name]().packed()
    inv_freq, multiplier = run_body(np.array(LENGTHS), *packed)
    for row, length in enumerate(LENGTHS):
        one, one_multiplier = run_body(np.array([length]), *packed)
        np.testing.assert_array_equal(one[0], inv_freq[row])
        assert one_multiplier[0] == multiplier[row]


def test_an_empty_batch_is_fine():
    inv_freq, multiplier = run_body(np.zeros(0, np.int64), *TABLES["dynamic-ntk"]().packed())
    assert inv_freq.shape == (0, 40) and multiplier.shape == (0,)
