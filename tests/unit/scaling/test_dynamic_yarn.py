"""Oracle: the yarn module, itself held to transformers, at the factor n/L of every length."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve

LENGTHS = (1, 4095, 4096, 4097, 5000, 8192, 65536, 131072, 1 << 22)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"truncate": False},
        {"beta_fast": 64.0, "beta_slow": 0.5},
        {"attention_factor": 0.8},
        {"mscale": 0.707, "mscale_all_dim": 1.3},
        {"mscale": 0.5, "mscale_all_dim": 0.0},
        {"mscale": 0.707},
        {"mscale_all_dim": 0.707},
        {"attention_factor": 1.1, "mscale": 0.707, "mscale_all_dim": 1.3},
    ],
    ids=str,
)
def test_equals_yarn_at_the_length_s_factor(head_dim, share, given, make_shape):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share))
    by_length = resolve("dynamic-yarn", shape, 1 << 22, parameters=given).length_table
    for length in LENGTHS:
        factor = max(1.0, length / 4096)
        table = resolve("yarn", shape, 1 << 22, factor=factor, parameters=given).table
        inv_freq, multiplier = by_length.at(length)
        # Half a unit in the last place of float32 is 6e-8.
        np.testing.assert_allclose(inv_freq, table.inv_freq, rtol=6.1e-8, atol=0)
        assert multiplier == pytest.approx(table.multiplier, rel=1e-12)


def test_golden_attention_factor(make_shape):
    by_length = resolve("dynamic-yarn", make_shape(), 131072).length_table
    assert by_length.at(4096 * 16)[1] == pytest.approx(1.2773, abs=5e-5)  # FORMULAS.md, s = 16
    assert by_length.at(4096)[1] == by_length.at(1)[1] == 1.0


def test_a_given_attention_factor_holds_at_every_length(make_shape):
    given = {"attention_factor": 1.3}
    by_length = resolve("dynamic-yarn", make_shape(), 131072, parameters=given).length_table
    assert {by_length.at(n)[1] for n in LENGTHS} == {1.3}


def test_table_is_yarn_s_at_the_target(make_shape, same_table):
    resolved = resolve("dynamic-yarn", make_shape(64), 16384)
    yarn = resolve("yarn", make_shape(64), 16384).table
    same_table(resolved.table, (yarn.inv_freq, yarn.multiplier))
    assert resolved.factor == 1.0
    assert resolved.table.details["growth"] == 4.0
    assert resolved.table.details["low"] == yarn.details["low"]


def test_below_the_original_context_nothing_changes(make_shape):
    by_length = resolve("dynamic-yarn", make_shape(64), 16384).length_table
    for length in (1, 4096):
        inv_freq, _ = by_length.at(length)
        np.testing.assert_allclose(inv_freq, 1e4 ** (-np.arange(32) / 32), rtol=1e-15)


@pytest.mark.parametrize("given", [{"factor": 4.0}, {"factor": 1}])
def test_a_factor_is_refused(given, make_shape):
    with pytest.raises(UserError, match=r"scaling.factor is .*dynamic-yarn takes no factor"):
        resolve("dynamic-yarn", make_shape(), 8192, parameters=given)
    with pytest.raises(UserError, match=r"^factor is .*dynamic-yarn takes no factor"):
        resolve("dynamic-yarn", make_shape(), 8192, factor=given["factor"])


def test_attention_factor_of_zero_is_refused(make_shape):
    with pytest.raises(UserError, match=r"scaling.attention_factor is 0"):
        resolve("dynamic-yarn", make_shape(), 8192, parameters={"attention_factor": 0})
