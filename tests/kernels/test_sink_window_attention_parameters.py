"""What SinkWindowAttention's launcher refuses before anything is enqueued, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.kernels.attention_cases import Shape, make_case, prepare, run_case
from tests.kernels.kernel_library import DTYPES, KernelError, Strides

WRONG: dict[str, dict[str, Any]] = {
    "head dimension 12 is not supported": {"headDim": 12},
    "head dimension 264 is not supported": {"headDim": 264},
    "query heads 3": {"queryHeads": 3},
    "sinks is -1": {"sinks": -1},
    "and window -2": {"window": -2},
    f"and window {2**62 + 1}": {"window": 2**62 + 1},
    f"sinks is {2**62 + 1}": {"sinks": 2**62 + 1},
    "a bounded cache of 8 slots": {"bounded": 1, "sinks": 8},
    "scale is nan": {"scale": float("nan")},
    "softcap -1": {"softcap": -1.0},
    "rotary_dim is 33": {"rotaryDim": 33},
    "inv_freq or multiplier is missing": {"rotaryDim": 32},
    "rotation is 3": {"rotation": 3},
    "rotation is 1 with rotary_dim 0": {"rotation": 1},
    "rotation is 0 .* sink_position 5": {"sinkPosition": 5},
    "and sink_position -1": {"sinkPosition": -1},
    "cache type 3 is unknown": {"cacheType": 3},
    "give both for a quantised cache": {"cacheType": 1},
    "data type 5 is unknown": {"dataType": 5},
    "q has strides of 256 .batch., 60 .head.": {"queryStrides": Strides(256, 60, 128)},
    "k has strides of 256 .batch., 64 .head. and 64": {"keyStrides": Strides(256, 64, 64)},
    "v has strides of 256 .batch., -64 .head.": {"valueStrides": Strides(256, -64, 128)},
    "y has strides of 0 .batch., 64 .head. and 72": {"outputStrides": Strides(0, 64, 72)},
    f"y has strides of 0 .batch., 64 .head. and {2**37}": {"outputStrides": Strides(0, 64, 2**37)},
    "must have memory": {"query": None},
    "seen and new must have memory": {"seen": None},
    "sizes must not be negative": {"rows": -1},
    "each below 2\\^31": {"capacity": 2**31},
    "at most 2\\^37 elements": {"batch": 2**15, "capacity": 2**16},
    "q has 65536 x 65536 x 1 rows": {
        "batch": 2**16,
        "queryHeads": 2**16,
        "kvHeads": 2**16,
        "rows": 1,
        "capacity": 1,
        "headDim": 8,
    },
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_parameters_are_refused_with_a_message(library, fault):
    case = make_case(Shape(seen=(0,), new=(2,), rows=2, capacity=8, kv_heads=2))
    call = prepare(case, "float32", alias=False)
    for name, value in WRONG[fault].items():
        setattr(call.params, name, value)
    with pytest.raises(KernelError, match=fault):
        library.run("ctxSinkWindowAttention", call, ())


def test_strides_of_what_there_is_one_of_do_not_count(library):
    case = make_case(Shape(seen=(0,), new=(2,), rows=2, capacity=8, kv_heads=2))
    usual, *_ = run_case(library, case, "float32")
    call = prepare(case, "float32", alias=False)
    call.params.outputStrides = Strides(8, 128, 64)
    library.run("ctxSinkWindowAttention", call, ("output", "presentKey", "presentValue"))
    np.testing.assert_array_equal(call.buffers["output"].values, usual)


def test_misaligned_memory_is_refused(library):
    case = make_case(Shape(seen=(0,), new=(2,), rows=2, capacity=8))
    call = prepare(case, "float32", alias=False)
    call.params.query += 4
    with pytest.raises(KernelError, match="aligned to 16 bytes"):
        library.run("ctxSinkWindowAttention", call, ())
    for name in ("seen", "newTokens", "headSink"):
        call = prepare(replace(case, head_sink=np.zeros(1)), "float32", alias=False)
        setattr(call.params, name, getattr(call.params, name) + 1)
        with pytest.raises(KernelError, match="the others to their elements"):
            library.run("ctxSinkWindowAttention", call, ())


@pytest.mark.parametrize(
    ("present", "other", "offset"),
    [
        ("presentKey", "pastKey", 64),
        ("presentValue", "pastValue", -64),
        ("presentKey", "presentValue", 0),
        ("presentKey", "presentValue", 32),
        ("presentKey", "pastValue", 0),
        ("presentValue", "pastKey", 0),
        ("presentValue", "pastKey", 16),
    ],
)
def test_overlapping_caches_are_refused(library, present, other, offset):
    case = make_case(Shape(seen=(0,), new=(2,), rows=2, capacity=8))
    call = prepare(case, "float32", alias=False)
    setattr(call.params, present, getattr(call.params, other) + offset)
    with pytest.raises(KernelError, match="the caches overlap"):
        library.run("ctxSinkWindowAttention", call, ())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_window_is_unlimited(library, dtype):
    case = make_case(Shape(seen=(0,), new=(70,), rows=70, capacity=70, dtype=dtype))
    unlimited, *_ = run_case(library, case, dtype)
    y, *_ = run_case(library, replace(case, window=2**62), dtype)
    np.testing.assert_array_equal(y, unlimited)
