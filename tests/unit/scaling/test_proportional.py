from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1.0, 8.0])
@pytest.mark.parametrize("share", [1.0, 0.25, 0.3, 0.99])
def test_equals_transformers(head_dim, factor, share, make_shape, transformers_table):
    shape = make_shape(head_dim, theta=1e6)
    given = {"partial_rotary_factor": share}
    table = resolve("proportional", shape, 1 << 20, factor=factor, parameters=given).table
    expected, multiplier = transformers_table("proportional", shape, factor=factor, **given)
    assert table.inv_freq.shape == expected.shape == (head_dim // 2,)
    np.testing.assert_array_equal(table.inv_freq == 0, expected == 0)
    np.testing.assert_allclose(table.inv_freq, expected, rtol=2e-6, atol=0)
    assert table.multiplier == multiplier == 1.0


def test_rows_written_by_hand(make_shape):
    shape = make_shape(8, theta=10000.0)
    given = {"partial_rotary_factor": 0.5}
    table = resolve("proportional", shape, 8192, parameters=given).table
    assert table.inv_freq.tolist() == pytest.approx([0.5, 0.05, 0.0, 0.0], rel=1e-7)


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(80, 20), (128, 96), (80, 32)])
def test_share_defaults_to_what_the_model_rotates(
    head_dim, rotary_dim, make_shape, transformers_table, same_table
):
    shape = make_shape(head_dim, rotary_dim=rotary_dim)
    resolved = resolve("proportional", shape, 4096)
    assert np.count_nonzero(resolved.table.inv_freq) == rotary_dim // 2
    same_table(resolved.table, transformers_table("proportional", shape, factor=1.0))


@pytest.mark.parametrize("share", [0, 1.01])
def test_share_outside_its_range_is_refused(share, make_shape):
    with pytest.raises(UserError, match=r"scaling.partial_rotary_factor is"):
        resolve("proportional", make_shape(), 4096, parameters={"partial_rotary_factor": share})
