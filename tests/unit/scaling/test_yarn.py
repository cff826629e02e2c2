from __future__ import annotations

import math

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve


def test_golden_attention_factor(make_shape):
    multiplier = resolve("yarn", make_shape(), 4096 * 16).table.multiplier
    assert multiplier == pytest.approx(1.2773, abs=5e-5)  # FORMULAS.md, s = 16
    assert multiplier**2 == pytest.approx(1.6314, abs=5e-5)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"truncate": False},
        {"beta_slow": 4},
        {"beta_fast": 64.0, "beta_slow": 0.5},
        {"attention_factor": 0.8},
        {"mscale": 0.707, "mscale_all_dim": 1.3},
        {"mscale": 0.707},
        {"mscale_all_dim": 0.707},
        {"attention_factor": 1.1, "mscale": 0.707, "mscale_all_dim": 1.3},
    ],
    ids=str,
)
def test_equals_transformers(
    head_dim, factor, share, given, make_shape, transformers_table, same_table
):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share))
    resolved = resolve("yarn", shape, 1 << 21, factor=factor, parameters=given)
    same_table(resolved.table, transformers_table("yarn", shape, factor=factor, **given))


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1.0, 40.0, 512.0])
@pytest.mark.parametrize("truncate", [True, False])
def test_equals_transformers_evaluated_in_float64(
    head_dim, factor, truncate, make_shape, transformers_table, transformers_in_float64
):
    shape = make_shape(head_dim)
    expected, _ = transformers_table("yarn", shape, factor=factor, truncate=truncate)
    assert expected.dtype == np.float64
    parameters = {"truncate": truncate}
    table = resolve("yarn", shape, 1 << 21, factor=factor, parameters=parameters).table
    # Half a unit in the last place of float32 is 6e-8.
    np.testing.assert_allclose(table.inv_freq, expected, rtol=6.1e-8, atol=0)


def test_equals_transformers_at_the_demo_s_shape(make_shape, transformers_table, same_table):
    shape = make_shape(64, original=256)
    resolved = resolve("yarn", shape, 1 << 17)
    assert resolved.factor == 512.0
    same_table(resolved.table, transformers_table("yarn", shape, factor=512.0))


def test_both_mscales_count_also_where_one_is_zero(make_shape):
    given = {"mscale": 0.5, "mscale_all_dim": 0.0}
    multiplier = resolve("yarn", make_shape(), 4096 * 8, parameters=given).table.multiplier
    assert multiplier == pytest.approx(0.05 * math.log(8) + 1, rel=1e-12)


def test_attention_factor_of_zero_is_refused(make_shape):
    with pytest.raises(UserError, match=r"scaling.attention_factor is 0"):
        resolve("yarn", make_shape(), 8192, parameters={"attention_factor": 0})
