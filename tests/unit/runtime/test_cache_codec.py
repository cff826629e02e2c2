"""Keys and values to a cache's bytes and back. Oracles: ml_dtypes, numpy's rounding, numbers by
hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ctx_export.core.cache_type import LayerScales
from ctx_export.runtime.cache_codec import CacheCodec, codecs, quantise

SCALES = np.array([0.5, 0.03], np.float32)


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 2, 5, 4)).astype(np.float32)


def test_int8_elements_are_rounded_half_to_even_and_saturated() -> None:
    given = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 127.4, 1e9, -128.0, -1e9], np.float32)
    expected = [0, 2, 2, 0, -2, 127, 127, 127, -127, -127]
    assert quantise(given, "int8").tolist() == expected


def test_float8_elements_are_those_of_the_format() -> None:
    """1.0625 and 1.1875 lie between numbers of three mantissa bits, 2^-10 below the smallest."""
    given = np.array([1.0625, 1.1875, 2.0**-10, 3 * 2.0**-10, 460, 1e9, -1e9, np.nan], np.float32)
    bits = quantise(given, "float8e4m3fn")
    assert bits.dtype == np.uint8
    numbers = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(numbers, [1.0, 1.25, 0, 2.0**-8, 448, 448, -448, np.nan])


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("float8e4m3fn", 448)])
def test_every_head_has_its_scale_and_what_is_read_is_stored_again(
    dtype: str, largest: float
) -> None:
    codec, given = CacheCodec(dtype=dtype, scale=SCALES), rows()
    held = codec.stored(given)
    assert held.shape == given.shape and held.itemsize == 1
    read = codec.read(held)
    assert read.dtype == np.float32
    for head, scale in enumerate(SCALES.tolist()):
        inside = np.abs(given[:, head]) <= scale * largest
        error = np.abs(read[:, head] - given[:, head])[inside]
        # int8 rounds by half a step, float8 by a sixteenth of the number or half a smallest one.
        size = np.abs(given[:, head])[inside]
        half = scale / 2 if dtype == "int8" else np.maximum(size / 16, scale * 2**-10)
        assert (error <= half * 1.0001).all() and error.any()
        assert np.abs(read[:, head]).max() <= scale * largest * 1.0001
    np.testing.assert_array_equal(codec.stored(read), held)


def test_other_types_are_cast() -> None:
    given = rows(1)
    for dtype, kind in (("float32", np.float32), ("float16", np.float16)):
        codec = CacheCodec(dtype=dtype)
        np.testing.assert_array_equal(codec.stored(given), given.astype(kind))
        np.testing.assert_array_equal(codec.read(given.astype(kind)), given.astype(kind))
    codec = CacheCodec(dtype="bfloat16")
    expected = given.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(codec.stored(given), expected.view(np.uint16))
    np.testing.assert_array_equal(codec.read(expected.view(np.uint16)), expected.astype("f4"))


def test_keys_and_values_have_scales_of_their_own() -> None:
    key, value = codecs("int8", LayerScales(key=(0.5, 1.0), value=(2.0, 4.0)))
    ones = np.ones((1, 2, 1, 1), np.int8)
    assert key.read(ones).flatten().tolist() == [0.5, 1.0]
    assert value.read(ones).flatten().tolist() == [2.0, 4.0]
    assert codecs("float16", None) == (CacheCodec(dtype="float16"),) * 2


def test_a_type_that_is_not_quantised_is_a_bug() -> None:
    with pytest.raises(ValueError, match="float16 is no quantised type"):
        quantise(rows(), "float16")
