"""SinkWindowAttention over float8 and int8 caches; oracles: ops.reference in float64, ml_dtypes.

Slots no token was written to hold NaN or the largest number, so reading one shows in the result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ctx_export.ops.reference import sink_window_attention
from ctx_export.ops.spec import Rotation
from tests.kernels.attention_cases import Shape, make_case
from tests.kernels.kernel_library import DTYPES, KernelLibrary
from tests.kernels.quantised_cases import (
    CACHE_TYPES,
    dequantised,
    make_quantised,
    prepare_quantised,
    run_quantised,
)
from tests.kernels.test_sink_window_attention import allowed_error


def assert_matches_reference(
    library: KernelLibrary, shape: Shape, cache_type: str, *, workspace: bool = False
) -> None:
    case = make_quantised(shape, cache_type)
    expected, *caches = sink_window_attention(case)
    y, *presents = run_quantised(library, case, shape.dtype, workspace=workspace)
    for present, cache in zip(presents, caches, strict=True):
        np.testing.assert_array_equal(present.astype(np.float64), cache)
    got = y.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    meant = dequantised(case, (caches[0], caches[1]))
    error = np.nanmax(np.abs(got - expected), initial=0.0)
    assert error <= allowed_error(case, shape.dtype, expected, meant)
    for b, new in enumerate(shape.new):
        assert (got[b, :, new:] == 0).all()


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 64, 72, 80, 96, 128, 136, 256])
@pytest.mark.parametrize("rows", [1, 40])
def test_every_head_dim_type_and_kernel(library, cache_type, dtype, dim, rows):
    shape = Shape(
        seen=(0, 70),
        new=(rows, max(1, rows - 3)),
        rows=rows,
        capacity=111,
        dim=dim,
        kv_heads=2,
        groups=2,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, cache_type)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_wrapped_ring_with_sinks_and_keys_rotated_on_read(library, cache_type, dtype, rows):
    shape = Shape(
        seen=(190, 2),
        new=(rows, 1),
        rows=rows,
        capacity=4 + 70 + rows - 1,
        kv_heads=2,
        groups=3,
        sinks=4,
        window=70,
        bounded=True,
        softcap=20.0,
        head_sink=True,
        rotary_dim=64,
        rotation=Rotation.QUERY_AND_KEYS_ON_READ,
        sink_position=73,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, cache_type)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 12])
def test_keys_split_over_blocks(library, cache_type, dtype, rows):
    shape = Shape(
        seen=(900, 3),
        new=(rows, rows),
        rows=rows,
        capacity=960,
        kv_heads=2,
        groups=4,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, cache_type, workspace=True)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_keys_are_quantised_after_they_are_rotated(library, cache_type, dtype, interleaved):
    """A key near the middle of two numbers may round either way: one step is allowed."""
    shape = Shape(
        seen=(5,),
        new=(9,),
        rows=9,
        capacity=14,
        rotary_dim=64,
        rotation=Rotation.ON_WRITE,
        interleaved=interleaved,
        dtype=dtype,
    )
    case = make_quantised(shape, cache_type)
    _, key, value = sink_window_attention(case)
    _, got_key, got_value = run_quantised(library, case, dtype)
    np.testing.assert_array_equal(got_value.astype(np.float64), value)
    step = 1.0 if cache_type == "int8" else np.maximum(np.abs(key) / 8, 2.0**-9)
    off = np.abs(got_key.astype(np.float64) - key)
    assert (off <= step).all()
    # Rounding to the data's type first moves 2^-8 of a step's width at most in bfloat16.
    assert (off > 0).mean() <= (0.001 if dtype == "float32" else 0.1)


E4M3_EDGES = [
    *(448.0, 463.9, 464.0, 464.1, 1e30, np.inf, -448.0, -1e30, -np.inf, np.nan),
    *(2.0**-6, 2.0**-6 * 0.97, 2.0**-9, 2.0**-10, 2.0**-10 * 1.001, 2.0**-11, 1e-30, 0.0, -0.0),
    *(1.0625, 1.1875, 17.0, 19.0, -17.0, 0.0146484375, 0.013671875),
]


def written(library: KernelLibrary, values: Any, cache_type: str, scale: float) -> Any:
    """The cache's numbers after the values were written as float32 keys of one token."""
    case = make_quantised(
        Shape(seen=(0,), new=(1,), rows=1, capacity=1, dim=len(values)), cache_type
    )
    case = replace(case, k=np.asarray(values, np.float64).reshape(1, 1, 1, -1))
    case = replace(case, key_scale=np.array([scale]))
    call = prepare_quantised(case, "float32")
    library.run("ctxSinkWindowAttention", call, ("output", "presentKey", "presentValue"))
    return call.buffers["presentKey"].values[0, 0, 0]


def test_edges_of_e4m3_are_rounded_as_ml_dtypes_does(library):
    values = np.array(E4M3_EDGES + [0.0] * (-len(E4M3_EDGES) % 8), np.float32)
    finite = np.where(np.isnan(values), np.nan, np.clip(values, -448, 448))
    expected = finite.astype(ml_dtypes.float8_e4m3fn)
    got = written(library, values, "float8e4m3fn", 1.0)
    np.testing.assert_array_equal(got.view(np.uint8) & 0x7F, expected.view(np.uint8) & 0x7F)
    np.testing.assert_array_equal(np.signbit(got[:-2]), np.signbit(expected[:-2]))


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_random_values_and_scales_are_rounded_as_ml_dtypes_and_numpy_do(library, cache_type):
    rng = np.random.default_rng(7)
    for _ in range(20):
        values = (rng.standard_normal(256) * 10 ** rng.uniform(-3, 2)).astype(np.float32)
        scale = np.float32(10 ** rng.uniform(-3, 0))
        units = values / scale
        if cache_type == "int8":
            expected = np.clip(np.rint(units), -127, 127).astype(np.int8)
        else:
            expected = np.clip(units, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        got = written(library, values, cache_type, float(scale))
        np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_every_number_is_read_as_what_it_means(library, cache_type, dtype):
    """One visible token: y is its value, here each of the 256 numbers times the scale."""
    element = CACHE_TYPES[cache_type][1]
    numbers = np.arange(256, dtype=np.uint8).view(element)
    case = make_case(
        Shape(seen=(1,), new=(1,), rows=1, capacity=2, dim=256, window=2, dtype=dtype)
    )
    value = np.stack([numbers, numbers])[None, None].astype(np.float64)
    case = replace(
        case,
        cache_type=cache_type,
        past_key=np.zeros((1, 1, 2, 256)),
        past_value=value,
        key_scale=np.array([1.0]),
        value_scale=np.array([2.0]),
        k=np.zeros((1, 1, 1, 256)),
        q=np.zeros((1, 1, 1, 256)),
        v=value[:, :, :1] * 2,
    )
    y, *_ = run_quantised(library, case, dtype)
    meant = (2 * value[0, 0, 0]).astype(DTYPES[dtype][1])
    kept = numbers.view(np.uint8) != 0x80 if cache_type == "int8" else np.full(256, True)
    np.testing.assert_array_equal(  # -128 is no number of an int8 cache: it is written as -127
        y[0, 0, 0][kept].astype(np.float64), meant[kept].astype(np.float64)
    )


def test_scales_are_asked_for(library):
    call = prepare_quantised(
        make_quantised(Shape(seen=(0,), new=(1,), rows=1, capacity=2), "int8"), "float32"
    )
    call.params.valueScale = None
    status, text = library.raw("ctxSinkWindowAttention", call.params)
    assert status == 1
    assert "give both for a quantised cache" in text
