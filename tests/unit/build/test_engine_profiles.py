"""Profile ranges against rows written by hand."""

from __future__ import annotations

import pytest

from ctx_export.build.engine_profiles import Limits, profiles
from ctx_export.core.manifest import TensorInfo

INPUTS = (
    TensorInfo(name="input_ids", dtype="int64", shape=("batch", "tokens"), role="input_ids"),
    TensorInfo(name="seen", dtype="int64", shape=("batch",), role="seen"),
    TensorInfo(name="logit_rows", dtype="int64", shape=("batch", "rows"), role="logit_rows"),
    TensorInfo(
        name="past_key_values.0.key",
        dtype="float16",
        shape=("batch", 2, "slots", 64),
        role="past_key",
        layer=0,
    ),
)


def ranges(inputs, **limits):
    """Per profile: input → (minimum, optimum, maximum)."""
    return [
        {shape.name: (shape.minimum, shape.optimum, shape.maximum) for shape in profile}
        for profile in profiles(inputs, Limits(**limits))
    ]


def test_prefill_and_decode_ranges():
    prefill, decode = ranges(INPUTS, max_batch=3, max_chunk=512, capacity=131072)
    assert prefill == {
        "input_ids": ((1, 1), (1, 512), (3, 512)),
        "seen": ((1,), (1,), (3,)),
        "logit_rows": ((1, 1), (1, 1), (3, 512)),
        "past_key_values.0.key": ((1, 2, 1, 64), (1, 2, 4096, 64), (3, 2, 131072, 64)),
    }
    assert decode == {
        "input_ids": ((1, 1), (1, 1), (3, 1)),
        "seen": ((1,), (1,), (3,)),
        "logit_rows": ((1, 1), (1, 1), (3, 1)),
        "past_key_values.0.key": ((1, 2, 1, 64), (1, 2, 4096, 64), (3, 2, 131072, 64)),
    }


def test_no_range_passes_a_small_capacity():
    prefill, decode = ranges(INPUTS, max_batch=1, max_chunk=8, capacity=100)
    for profile in (prefill, decode):
        cache = profile["past_key_values.0.key"]
        assert cache == (
            (1, 2, 1, 64),
            (1, 2, 100, 64),
            (1, 2, 100, 64),
        )


def test_inputs_of_fixed_shape_need_no_range():
    fixed = TensorInfo(name="table", dtype="float32", shape=(1, 32), role="inv_freq")
    assert ranges((fixed,), max_batch=1, max_chunk=1, capacity=1) == [{}, {}]


def test_unknown_symbol_is_named():
    odd = TensorInfo(name="mask", dtype="int64", shape=("batch", "total"), role="mask")
    with pytest.raises(ValueError, match=r"input mask .*'total'"):
        profiles((odd,), Limits(max_batch=1, max_chunk=1, capacity=1))


@pytest.mark.parametrize("name", ["max_batch", "max_chunk", "capacity"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{"max_batch": 1, "max_chunk": 1, "capacity": 1, name: 0})
