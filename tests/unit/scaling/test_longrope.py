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


def test_alias_su():
    assert find("su") is find("longrope")
