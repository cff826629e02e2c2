from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import find, resolve


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("base", [1e6, 5e5, 20221.0])
def test_equals_a_model_of_that_base(head_dim, base, make_shape, transformers_table, same_table):
    new = make_shape(head_dim, theta=base)
    resolved = resolve("abf", make_shape(head_dim), 16384, parameters={"rope_theta": base})
    same_table(resolved.table, transformers_table("linear", new, factor=1.0))
    assert resolved.factor == 1.0


def test_the_base_is_required(make_shape):
    with pytest.raises(
        UserError, match=r"scaling.rope_theta is missing.*--set scaling.rope_theta"
    ):
        resolve("theta", make_shape(), 8192)


@pytest.mark.parametrize("value", [0, -1, True, "1e6", float("nan"), float("inf"), 1.0, [1e6]])
def test_a_base_that_is_none_is_refused(value, make_shape):
    with pytest.raises(UserError, match=r"scaling.rope_theta is "):
        resolve("theta", make_shape(), 8192, parameters={"rope_theta": value})


def test_alias_abf():
    assert find("abf") is find("theta")
