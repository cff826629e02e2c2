from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve


@pytest.mark.parametrize(
    ("d", "theta", "original", "truncate", "low", "high"),
    [
        (128, 1e4, 4096, True, 20, 46),
        (128, 1e4, 2048, True, 16, 41),
        (64, 1e4, 512, True, 3, 16),
        (64, 1.5e5, 4096, True, 8, 18),
        (64, 1.5e5, 4096, False, 8.093, 17.398),
    ],
)  # FORMULAS.md
def test_golden_ramp_ends(d, theta, original, truncate, low, high, make_shape):
    shape = make_shape(d, theta=theta, original=original)
    table = resolve("ntk-by-parts", shape, original * 4, parameters={"truncate": truncate}).table
    ends = (table.details["low"], table.details["high"])
    assert ends == pytest.approx((low, high), abs=5e-4)


def test_below_the_ramp_kept_above_it_divided(make_shape):
    shape = make_shape(128)  # ramp 20 … 46
    plain = resolve("none", shape, 4096).table.inv_freq
    scaled = resolve("ntk-by-parts", shape, 4096, factor=8.0).table.inv_freq
    assert scaled[:21].tolist() == plain[:21].tolist()
    assert scaled[46:].tolist() == (plain[46:] / 8).tolist()
    middle = plain[33] * (0.5 + 0.5 / 8)  # index 33 is half-way up
    assert scaled[33] == pytest.approx(middle, rel=1e-6)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(
    "given", [{}, {"truncate": False}, {"beta_fast": 16}, {"beta_slow": 2.0}, {"beta_fast": None}]
)
def test_equals_transformers_yarn_without_attention_factor(
    head_dim, factor, share, given, make_shape, transformers_table, same_table
):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share))
    expected = transformers_table("yarn", shape, factor=factor, attention_factor=1.0, **given)
    resolved = resolve("ntk-by-parts", shape, 1 << 20, factor=factor, parameters=given)
    same_table(resolved.table, expected)
    assert (resolved.parameters.beta_fast, resolved.parameters.beta_slow) == (
        given.get("beta_fast") or 32.0,
        given.get("beta_slow") or 1.0,
    )


def test_a_ramp_of_no_width_is_a_step(make_shape, transformers_table, same_table):
    shape = make_shape(64, original=24)
    given = {"beta_fast": 3.8, "beta_slow": 3.8, "truncate": False}
    resolved = resolve("ntk-by-parts", shape, 96, parameters=given)
    assert resolved.table.details["low"] == resolved.table.details["high"]
    expected = transformers_table("yarn", shape, factor=4.0, attention_factor=1.0, **given)
    same_table(resolved.table, expected)


def test_a_ramp_that_runs_backwards_is_refused(make_shape):
    # transformers clips such a ramp to zero and silently scales nothing.
    with pytest.raises(UserError, match="ramp would run from dimension 0 down to -2"):
        resolve("ntk-by-parts", make_shape(64, original=3), 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta_fast": 0.5}, "beta_fast is 0.5 and beta_slow 1"),
        ({"beta_slow": 0}, "beta_fast is 32 and beta_slow 0"),
        ({"beta_slow": -1}, r"scaling.beta_slow is -1: it must be a finite number at least 0"),
        ({"truncate": 1}, "scaling.truncate is 1: it must be true or false"),
        ({"truncate": "false"}, "scaling.truncate is 'false'"),
        ({"beta_fsat": 32}, "scaling.beta_fsat is unknown, did you mean beta_fast?"),
        ({"attention_factor": 1.0}, "scaling.attention_factor is unknown"),
    ],
)
def test_wrong_parameters_are_named(given, message, make_shape):
    with pytest.raises(UserError, match=message):
        resolve("ntk-by-parts", make_shape(), 8192, parameters=given)
