"""ScaledRotaryEmbedding's kernel, executed by the host.

Oracles: ops.reference in float64 for values, mpmath with 60 digits for angles at far positions.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctx_export.ops.reference import rotate
from tests.kernels.kernel_library import DTYPES, Call, KernelError, KernelLibrary, RotaryParams

mpmath = pytest.importorskip("mpmath")

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def prepare(
    x: NDArray[Any],
    positions: NDArray[np.int64],
    inv_freq: NDArray[np.float32],
    multiplier: NDArray[np.float32],
    *,
    interleaved: bool = False,
    dtype: str = "float32",
    misalign: int = 0,
) -> Call:
    batch, heads, rows, dim = x.shape
    params = RotaryParams(
        size=ctypes.sizeof(RotaryParams),
        batch=batch,
        heads=heads,
        rows=rows,
        headDim=dim,
        rotaryDim=2 * inv_freq.shape[1],
        frequencyBatch=len(inv_freq),
        multiplierBatch=len(multiplier),
        interleaved=int(interleaved),
        dataType=DTYPES[dtype][0],
    )
    call = Call(params)
    call.point("x", x, misalign)
    call.point("positions", positions)
    call.point("inverseFrequency", inv_freq)
    call.point("multiplier", multiplier)
    call.point("y", np.full_like(x, -7), misalign)
    return call


def run(library: KernelLibrary, *args: Any, **options: Any) -> NDArray[Any]:
    call = prepare(*args, **options)
    library.run("ctxScaledRotaryEmbedding", call, ("y",))
    return call.buffers["y"].values


def assert_matches_reference(
    library: KernelLibrary,
    shape: tuple[int, int, int, int],
    rotary_dim: int,
    *,
    dtype: str = "float32",
    interleaved: bool = False,
    tables: int = 1,
    misalign: int = 0,
) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(DTYPES[dtype][1])
    positions = rng.integers(0, 1 << 22, (shape[0], shape[2]))
    frequency = 10000.0 ** (-np.arange(rotary_dim // 2) * 2 / rotary_dim)
    inv_freq = (frequency / (1 + np.arange(tables)[:, None])).astype(np.float32)
    multiplier = (1.25 + np.arange(tables)).astype(np.float32)
    y = run(
        *(library, x, positions, inv_freq, multiplier),
        interleaved=interleaved,
        dtype=dtype,
        misalign=misalign,
    )
    expected = rotate(
        x.astype(np.float64),
        positions,
        inv_freq.astype(np.float64),
        multiplier.astype(np.float64),
        rotary_dim=rotary_dim,
        interleaved=interleaved,
    )
    assert y.dtype == x.dtype and y.shape == x.shape
    # 1e-6 rad and float32 rounding on values up to 4 times the multiplier, then one rounding.
    allowed = 1e-6 * 4 * multiplier.max() + UNIT_ROUNDOFF[dtype] * np.abs(expected)
    assert (np.abs(y.astype(np.float64) - expected) <= allowed).all()
    np.testing.assert_array_equal(y[..., rotary_dim:], x[..., rotary_dim:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("dim", "rotary_dim"),
    [(32, 32), (64, 64), (80, 80), (80, 32), (96, 24), (112, 112), (128, 128), (256, 64), (6, 2)],
)
def test_every_width_and_layout(library, dtype, interleaved, dim, rotary_dim):
    assert_matches_reference(
        library, (2, 3, 7, dim), rotary_dim, dtype=dtype, interleaved=interleaved
    )


@pytest.mark.parametrize("rows", [1, 19, 99])
@pytest.mark.parametrize("heads", [1, 3, 4, 5, 9])
def test_rows_and_head_groups(library, rows, heads):
    assert_matches_reference(library, (2, heads, rows, 64), 64, dtype="float16")


def test_one_table_per_sequence(library):
    assert_matches_reference(library, (3, 2, 5, 64), 64, tables=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_aligned_to_the_element_only(library, dtype):
    misalign = DTYPES[dtype][1].itemsize
    assert_matches_reference(library, (1, 2, 5, 64), 64, dtype=dtype, misalign=misalign)


def test_in_place(library):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 2, 3, 64)).astype(np.float32)
    arguments = (x, np.arange(3)[None], np.full((1, 32), 0.3, np.float32), np.ones(1, np.float32))
    expected = run(library, *arguments)
    call = prepare(*arguments)
    call.params.y = call.params.x
    library.run("ctxScaledRotaryEmbedding", call, ("x",))
    np.testing.assert_array_equal(call.buffers["x"].values, expected)


def angle_errors(
    library: KernelLibrary, positions: NDArray[np.int64], inv_freq: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Error in radians [positions, frequencies]: (1, 0) is rotated to (cos, sin) by the kernel."""
    pairs = len(inv_freq)
    x = np.zeros((1, 1, len(positions), 2 * pairs), np.float32)
    x[..., :pairs] = 1
    y = run(library, x, positions[None], inv_freq[None], np.ones(1, np.float32))[0, 0]
    got = np.arctan2(y[:, pairs:].astype(np.float64), y[:, :pairs].astype(np.float64))
    errors = np.empty(got.shape)
    with mpmath.workdps(60):
        turn = 2 * mpmath.pi
        for i, position in enumerate(positions):
            for j, frequency in enumerate(inv_freq):
                exact = mpmath.mpf(int(position)) * mpmath.mpf(float(frequency))
                difference = (mpmath.mpf(float(got[i, j])) - exact) / turn
                errors[i, j] = abs(float((difference - mpmath.nint(difference)) * turn))
    return errors


def test_angles_are_exact_to_1e_6_rad_up_to_2_to_33(library):
    rng = np.random.default_rng(3)
    positions = np.unique(
        np.concatenate(
            [
                [0, 1, 2, 4095, 131071, 2**20, 2**31 - 1, 2**31, 2**32 + 1, 2**33 - 1, 2**33],
                rng.integers(0, 2**33, 40),
            ]
        )
    )
    tables = [10000.0 ** (-np.arange(0, 64, 7) / 64), 5e6 ** (-np.arange(0, 64, 7) / 64) / 512]
    extremes = [1.0, np.pi, 6.2831855, 100.0, 1e-10, 1e-20, 1e-38, 1e-45, 0.0, -0.37]
    inv_freq = np.concatenate([*tables, extremes]).astype(np.float32)
    errors = angle_errors(library, positions, inv_freq)
    assert errors.max() < 2e-7  # the bound stated in angle.cuh is 1e-7 plus float32's own rounding


def test_angles_stay_exact_far_past_2_to_33(library):
    positions = np.array([2**36 + 12345, 2**40 - 1], np.int64)
    errors = angle_errors(library, positions, np.array([1.0, 0.1, 1e-4], np.float32))
    assert errors.max() < 1e-6


@pytest.mark.parametrize("frequency", [np.nan, np.inf, -np.inf, 2.0**21])
def test_frequency_without_a_meaning_gives_nan(library, frequency):
    x = np.ones((1, 1, 2, 4), np.float32)
    y = run(
        library,
        x,
        np.array([[0, 5]]),
        np.array([[frequency, 1]], np.float32),
        np.ones(1, np.float32),
    )
    assert np.isnan(y[..., [0, 2]]).all()
    assert np.isfinite(y[..., [1, 3]]).all()


def test_empty_batch_is_fine(library):
    x = np.ones((1, 1, 2, 4), np.float32)
    call = prepare(
        x, np.zeros((1, 2), np.int64), np.ones((1, 2), np.float32), np.ones(1, np.float32)
    )
    call.params.rows = 0
    library.run("ctxScaledRotaryEmbedding", call, ())


WRONG: dict[str, dict[str, Any]] = {
    "rotary_dim is 7": {"rotaryDim": 7},
    "rotary_dim is 8 for a head dimension of 4": {"rotaryDim": 8},
    "have batch 2 and 1": {"frequencyBatch": 2},
    "interleaved is 2": {"interleaved": 2},
    "data type 3": {"dataType": 3},
    "null tensor": {"positions": None},
    "must not be negative": {"rows": -1},
    "each below 2\\^31": {"heads": 2**31},
    "at most 2\\^37 elements": {"batch": 2**17, "heads": 2**18},
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_parameters_are_refused_with_a_message(library, fault):
    x = np.ones((1, 1, 2, 4), np.float32)
    call = prepare(
        x, np.zeros((1, 2), np.int64), np.ones((1, 2), np.float32), np.ones(1, np.float32)
    )
    for name, value in WRONG[fault].items():
        setattr(call.params, name, value)
    with pytest.raises(KernelError, match=fault):
        library.run("ctxScaledRotaryEmbedding", call, ())


@pytest.mark.parametrize("name", ["x", "positions", "inverseFrequency", "multiplier", "y"])
def test_memory_not_aligned_to_its_elements_is_refused(library, name):
    x = np.ones((1, 1, 2, 4), np.float32)
    arguments = (
        x,
        np.zeros((1, 2), np.int64),
        np.ones((1, 2), np.float32),
        np.ones(1, np.float32),
    )
    call = prepare(*arguments)
    setattr(call.params, name, getattr(call.params, name) + 2)
    with pytest.raises(KernelError, match="aligned to its elements"):
        library.run("ctxScaledRotaryEmbedding", call, ())


@pytest.mark.parametrize("offset", [-16, 16])
def test_partly_overlapping_output_is_refused(library, offset):
    x = np.ones((1, 1, 2, 4), np.float32)
    arguments = (
        x,
        np.zeros((1, 2), np.int64),
        np.ones((1, 2), np.float32),
        np.ones(1, np.float32),
    )
    call = prepare(*arguments)
    call.params.y = call.params.x + offset
    with pytest.raises(KernelError, match="overlaps x"):
        library.run("ctxScaledRotaryEmbedding", call, ())


def test_values_past_float16_become_infinite(library):
    x = np.array([60000, -60000, 1, 2], np.float16).reshape(1, 1, 1, 4)
    tables = (np.zeros((1, 2), np.float32), np.full(1, 2, np.float32))
    y = run(library, x, np.zeros((1, 1), np.int64), *tables, dtype="float16")
    np.testing.assert_array_equal(y.ravel(), [np.inf, -np.inf, 2, 4])


def test_struct_without_its_size_is_refused(library):
    status, text = library.raw("ctxScaledRotaryEmbedding", RotaryParams())
    assert status == 1
    assert "size" in text
