from __future__ import annotations

import math

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import find, resolve


def lists(count: int) -> dict[str, list[float]]:
    return {
        "short_factor": np.linspace(1.0, 1.5, count).tolist(),
        "long_factor": np.geomspace(1.1, 40.0, count).tolist(),
    }


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("target", [1000, 4096, 4097, 131072])
@pytest.mark.parametrize(
    "given", [{}, {"attention_factor": 1.19}, {"factor": 16.0}, {"factor": None}], ids=str
)
def test_equals_transformers_on_either_side_of_the_switch(
    head_dim, share, target, given, make_shape, transformers_table, same_table
):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share), maximum=131072)
    parameters = {**lists(shape.rotary_dim // 2), **given}
    resolved = resolve("longrope", shape, target, parameters=parameters)
    assert resolved.factor == given.get("factor") or 32.0
    assert resolved.table.details["divisors"] == (
        "long_factor" if target > 4096 else "short_factor"
    )
    same_table(resolved.table, transformers_table("longrope", shape, seq_len=target, **parameters))


def test_multiplier_ignores_the_target(make_shape):
    """s is max_position_embeddings / L (here 8), not T / L."""
    shape = make_shape(64, maximum=32768)
    multiplier = resolve("longrope", shape, 16384, parameters=lists(32)).table.multiplier
    assert multiplier == pytest.approx(math.sqrt(1 + math.log(8) / math.log(4096)), rel=1e-12)


def test_an_unextended_checkpoint_has_multiplier_one(make_shape):
    shape = make_shape(64, original=4096, maximum=2048)
    assert resolve("longrope", shape, 8192, parameters=lists(32)).table.multiplier == 1.0


@pytest.mark.parametrize(("target", "multiplier"), [(4096, 1.05), (4097, 1.25)])
def test_mscales_of_the_list_in_use(target, multiplier, make_shape):
    given = {**lists(32), "short_mscale": 1.05, "long_mscale": 1.25}
    shape = make_shape(64, maximum=131072)
    assert resolve("longrope", shape, target, parameters=given).table.multiplier == multiplier
    given["attention_factor"] = 1.5
    assert resolve("longrope", shape, target, parameters=given).table.multiplier == 1.5


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
@pytest.mark.parametrize("target", [4096, 8192])
def test_either_list_of_wrong_length_is_refused(key, target, make_shape):
    given = {**lists(32), key: [1.0] * 31}
    with pytest.raises(UserError, match=rf"scaling.{key} has 31 numbers.*needs 32"):
        resolve("longrope", make_shape(64), target, parameters=given)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True, "2"])
def test_a_divisor_that_is_none_is_named(value, make_shape):
    given = {**lists(32), "long_factor": [1.0, 1.0, value, *[1.0] * 29]}
    with pytest.raises(UserError, match=r"scaling.long_factor\[2\] is "):
        resolve("longrope", make_shape(64), 8192, parameters=given)


def test_missing_list_is_named(make_shape):
    with pytest.raises(UserError, match=r"scaling.short_factor is missing"):
        resolve("longrope", make_shape(64), 8192, parameters={"long_factor": [1.0] * 32})


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("given", [{}, {"attention_factor": 1.19}, {"factor": 16.0}], ids=str)
def test_equals_transformers_at_every_length_around_the_switch(
    share, given, make_shape, transformers_table, same_values
):
    shape = make_shape(64, rotary_dim=int(64 * share), maximum=131072)
    parameters = {**lists(shape.rotary_dim // 2), **given}
    by_length = resolve("longrope", shape, 131072, parameters=parameters).length_table
    for length in (1, 2, 1000, 4095, 4096, 4097, 4098, 8192, 131071, 131072):
        expected = transformers_table("longrope", shape, seq_len=length, **parameters)
        same_values(by_length.at(length), expected)


def test_mscales_on_either_side_of_the_switch(make_shape):
    given = {**lists(32), "short_mscale": 1.05, "long_mscale": 1.25}
    by_length = resolve("longrope", make_shape(64), 8192, parameters=given).length_table
    assert [by_length.at(n)[1] for n in (1, 4096, 4097, 8192)] == [1.05, 1.05, 1.25, 1.25]


@pytest.mark.parametrize("target", [1, 4095, 4096])
def test_a_target_before_the_switch_needs_no_table_by_length(target, make_shape):
    assert resolve("longrope", make_shape(64), target, parameters=lists(32)).length_table is None


def test_table_is_the_one_at_the_target(make_shape):
    resolved = resolve("longrope", make_shape(64), 8192, parameters=lists(32))
    inv_freq, multiplier = resolved.length_table.at(8192)
    np.testing.assert_array_equal(resolved.table.inv_freq, inv_freq.astype(np.float32))
    assert resolved.table.multiplier == multiplier


def test_alias_su():
    assert find("su") is find("longrope")
